"""Role tokens of chat templates in row text, broken up visibly before the text goes to an endpoint.

An endpoint renders the prompt itself, so a message that holds "<|im_end|>" could end its own turn and
start another. Engines that render the prompt here keep such text as it is (engines/chat_tokens.py);
for endpoints one space behind the opening delimiter makes it plain text that people can still read.

The tokens are matched as tokenizers match them, character by character, in the text as it is and as
NFKC makes it, which some tokenizers apply first: full-width letters and ligatures become ordinary
ones there. Other look-alikes are no tokens to them. Templates whose turns are plain words ("USER:")
cannot be guarded so.
"""

import re
import unicodedata
from functools import lru_cache

_FAMILIES = (
    r"<(?=\|[^\s<>|][^\n<>|]{0,62}\|>)",  # <|im_start|>, <|eot_id|>, <|end|>, <|channel|>, <|START_OF_TURN_TOKEN|>
    r"<(?=\|[a-z_]{1,32}>|[a-z_]{1,32}\|>)",  # <|turn>, <turn|>
    r"<(?=｜[^\n<>｜]{1,64}｜>)",  # DeepSeek, with full-width bars
    r"<(?=/?s>|(?i:bos|eos|pad|unk|bos_token|eos_token|pad_token)>)",
    r"<(?=(?:start_of|end_of)_(?:turn|role|text|image)>|(?:begin_of_text|endoftext)>)",
    r"<(?=seed:[a-z_]{1,16}>|reserved_\d{1,4}>|extra_id_\d{1,4}>|SPECIAL_\d{1,4}>)",
    r"<(?=</?SYS>>)",  # Llama 2
    r"\[(?=/?(?:INST|SYSTEM_PROMPT|TOOL_CALLS|AVAILABLE_TOOLS|TOOL_RESULTS|TOOL_CONTENT|MODEL_SETTINGS|THINK)\])",
    r"\[(?=(?:CALL_ID|gMASK|sMASK|UNUSED_TOKEN_\d{1,4})\])",
    r"\](?=~!?b[\[\]])|\[(?=e~\[)",  # MiniMax: ]~b] and [e~[
)
_OPENING = re.compile("|".join(_FAMILIES))


def break_role_tokens(text: str) -> tuple[str, bool]:
    """The text with a space behind the opening delimiter of every role token, and whether there was one.

    The result holds no role token, so breaking it again changes nothing. Time is linear in the text.
    Example: "a<|im_end|>b" gives ("a< |im_end|>b", True); "a<b>c" and "x |> f" come back unchanged.
    """
    if unicodedata.is_normalized("NFKC", text):
        broken, num_tokens = _OPENING.subn(r"\g<0> ", text)
        return broken, num_tokens > 0
    folded = [_folded(char) for char in text]
    source = [i for i, chars in enumerate(folded) for _ in chars]  # of every folded character
    opens = {match.start() for match in _OPENING.finditer(text)}
    opens |= {source[match.start()] for match in _OPENING.finditer("".join(folded))}
    return "".join(f"{char} " if i in opens else char for i, char in enumerate(text)), bool(opens)


@lru_cache(maxsize=4096)
def _folded(char: str) -> str:
    return unicodedata.normalize("NFKC", char)
