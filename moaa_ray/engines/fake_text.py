"""The text of the fake engine: words of several scripts drawn from a digest, and nothing else.

The words mean nothing. A JSON schema is answered by the smallest value of the usual keywords
(type, properties, enum, const, items, minItems, minimum, anyOf); other keywords are not looked at.
"""

import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache
from statistics import NormalDist

from moaa_ray.types import Message, Sampling

_TEXT = (
    "river stone light winter garden answer number letter silver morning paper bridge question colour forest window "
    "más según ciudad tiempo über schön straße wörter déjà forêt été naïve água coração não então "
    "слово вода город ответ утро λόγος νερό φως πόλη مدينة ماء كلمة جواب शहर पानी शब्द उत्तर "
    "城市 河流 答案 光 言葉 水 町 答え 도시 물 단어 대답 ቃል ውሃ คำ น้ำ"
)
_WORDS = _TEXT.split()
_WORD_OF_BYTE = tuple(_WORDS[i % len(_WORDS)] for i in range(256))
_DIGEST_BYTES = 64
_STANDARD_NORMAL = NormalDist()


def prompt_digest(messages: Sequence[Message], sampling: Sampling, seed: int) -> bytes:
    """64 bytes that depend on messages, seed and sampling; not on max_tokens and stop, which only cut the text."""
    digest = hashlib.blake2b(_sampling_bytes(sampling), digest_size=_DIGEST_BYTES)
    digest.update(seed.to_bytes(16, "big", signed=True))
    for message in messages:
        for text in (message["role"], message["content"]):
            data = text.encode("utf-8", "surrogatepass")
            digest.update(len(data).to_bytes(8, "big"))
            digest.update(data)
    return digest.digest()


@lru_cache(maxsize=256)
def _sampling_bytes(sampling: Sampling) -> bytes:
    drawn = (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p, sampling.repetition_penalty)
    constraint = (sampling.json_schema, sampling.regex, sampling.choice)
    return hashlib.blake2b(repr((drawn, constraint)).encode("utf-8", "surrogatepass")).digest()


def num_words(digest: bytes, *, mean: int, sigma: float) -> int:
    """A log-normal length in words with this mean; the mean itself when sigma is 0. At least 1."""
    if sigma == 0:
        return mean
    uniform = (int.from_bytes(digest[:8], "big") + 0.5) / 2**64
    normal = _STANDARD_NORMAL.inv_cdf(uniform) if 0 < uniform < 1 else 0.0
    return max(1, round(mean * 2.718281828459045 ** (sigma * normal - sigma * sigma / 2)))


def words(digest: bytes, num: int) -> str:
    """The first `num` words of the digest's endless text."""
    if num <= _DIGEST_BYTES:
        return " ".join([_WORD_OF_BYTE[byte] for byte in digest[:num]])
    stream = bytearray(digest)
    while len(stream) < num:
        digest = hashlib.blake2b(digest, digest_size=_DIGEST_BYTES).digest()
        stream += digest
    return " ".join([_WORD_OF_BYTE[byte] for byte in stream[:num]])


def constrained(digest: bytes, sampling: Sampling) -> str:
    """A text that obeys `choice` or `json_schema`. Raises ValueError for a schema that is not JSON."""
    if sampling.choice:
        return sampling.choice[int.from_bytes(digest[8:16], "big") % len(sampling.choice)]
    return json.dumps(_value_of(json.loads(sampling.json_schema), digest), ensure_ascii=False)


def _value_of(schema: object, digest: bytes) -> object:
    if not isinstance(schema, dict):
        return None
    digest = hashlib.blake2b(digest, digest_size=_DIGEST_BYTES).digest()
    if "const" in schema:
        return schema["const"]
    for key in ("enum", "anyOf", "oneOf"):
        if key in schema:
            drawn = schema[key][digest[0] % len(schema[key])]
            return drawn if key == "enum" else _value_of(drawn, digest)
    match schema.get("type"):
        case "object":
            properties = schema.get("properties", {})
            return {name: _value_of(properties[name], digest + name.encode()) for name in properties}
        case "array":
            count = max(1, schema.get("minItems", 1))
            return [_value_of(schema.get("items", {}), digest + bytes([i % 256])) for i in range(count)]
        case "integer" | "number":
            low = schema.get("minimum", 0)
            return low + digest[1] % (int(schema.get("maximum", low + 9) - low) + 1)
        case "boolean":
            return digest[2] % 2 == 0
        case "string":
            return words(digest, 6)
    return None
