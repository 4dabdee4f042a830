"""Examples as plain values, as golden files hold them and metaalign's own format reads them."""

from typing import Any

import pyarrow as pa

from metaalign.examples import Example

_TAG = pa.struct([("key", pa.string()), ("value", pa.string())])
_SCORE = pa.struct([("objective", pa.string()), ("value", pa.float64())])
EXAMPLE_SCHEMA = pa.schema(
    [
        ("system_info", pa.string()),
        ("user_info", pa.string()),
        (
            "turns",
            pa.list_(
                pa.struct(
                    [("role", pa.string()), ("text", pa.string()), ("user_info", pa.string())]
                )
            ),
        ),
        (
            "responses",
            pa.list_(
                pa.struct(
                    [
                        ("text", pa.string()),
                        ("scores", pa.list_(_SCORE)),
                        ("desirable", pa.bool_()),
                    ]
                )
            ),
        ),
        ("weight", pa.float64()),
        ("margin", pa.float64()),
        ("order_by", pa.string()),
        ("tags", pa.list_(_TAG)),
        ("conversation", pa.string()),
        ("source", pa.struct([("file", pa.string()), ("row", pa.int64())])),
    ]
)


def to_row(example: Example) -> dict[str, Any]:
    """The example as plain values that fit `EXAMPLE_SCHEMA`."""
    return {
        "system_info": example.system_info,
        "user_info": example.user_info,
        "turns": [vars(turn) for turn in example.turns],
        "responses": [
            {
                "text": response.text,
                "scores": [
                    {"objective": name, "value": value} for name, value in response.scores.items()
                ],
                "desirable": response.desirable,
            }
            for response in example.responses
        ],
        "weight": example.weight,
        "margin": example.margin,
        "order_by": example.order_by,
        "tags": [{"key": key, "value": value} for key, value in example.tags.items()],
        "conversation": example.conversation,
        "source": vars(example.source),
    }
