"""What a tokenizer says about the tokens that steer a conversation, and about its chat template."""

import re
from collections.abc import Callable, Iterable

from moaa_ray.engines.base import EngineStartError


def without_trimming(backend):
    """The backend without its last step, which changes no token here but moves offsets off the blanks around them,
    and without a length that its file may have it cut or fill up texts to.
    """
    if backend.post_processor is None and backend.truncation is None and backend.padding is None:
        return backend
    backend = type(backend).from_str(backend.to_str())
    backend.post_processor = None
    backend.no_truncation()
    backend.no_padding()
    return backend


def template_of(tokenizer) -> str:
    """The tokenizer's own chat template. Raises EngineStartError when it has none."""
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if not template:
        raise EngineStartError(
            f"the tokenizer of {tokenizer.name_or_path} has no chat template; "
            "use the instruction-tuned version of the model, or set `chat_template` to a file with one"
        )
    return template


def control_tokens(tokenizer, template: str) -> dict[int, str]:
    """Id -> text of the tokens that steer a conversation: special ones, and added ones the template writes.

    The token for unknown characters steers nothing, unless it has another part as well.
    """
    names = {name: text for name, text in tokenizer.special_tokens_map.items() if isinstance(text, str)}
    unknown = names.pop("unk_token", None)
    return {
        i: token.content
        for i, token in tokenizer.added_tokens_decoder.items()
        if token.content.strip()
        and (token.special or token.content in template)
        and (token.content != unknown or token.content in template or token.content in names.values())
    }


def any_of(tokens: Iterable[str]) -> Callable[[str], bool]:
    """Whether a text holds one of these, as a function of the text."""
    pattern = re.compile("|".join(re.escape(text) for text in sorted(tokens, key=len, reverse=True)) or r"(?!)")
    return lambda text: pattern.search(text) is not None
