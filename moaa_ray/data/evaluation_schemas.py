"""The Arrow schemas of an evaluation: what a model has answered, and what was judged of it."""

import pyarrow as pa

from moaa_ray.data.schemas import MESSAGES, schema

ANSWERS = schema(
    "answers",
    1,
    [
        ("id", pa.string()),
        ("benchmark", pa.string()),
        ("question", pa.string()),
        ("messages", MESSAGES),
        ("flags", pa.list_(pa.string())),  # truncated:<turn>
    ],
)

GAME = pa.struct(
    [
        ("turn", pa.int32()),
        ("is_model_first", pa.bool_()),  # null: the answer was judged alone
        ("value", pa.float64()),  # preference for the model in [0, 1], grade, or score; null: none, or in words
        ("grade", pa.string()),  # the judge's own word; empty: none, see error
        ("error", pa.string()),
        ("text", pa.string()),
    ]
)

JUDGED = schema(
    "judged",
    1,
    [
        ("id", pa.string()),
        ("model", pa.string()),
        ("benchmark", pa.string()),
        ("question", pa.string()),
        ("category", pa.string()),
        ("messages", MESSAGES),
        ("baseline", pa.string()),
        ("references", pa.list_(pa.string())),
        ("is_same_text", pa.bool_()),  # then no judge was asked
        ("games", pa.list_(GAME)),
        ("judge", pa.string()),
        ("prompt_version", pa.string()),
        ("sampling", pa.string()),  # JSON
        ("flags", pa.list_(pa.string())),
    ],
)
