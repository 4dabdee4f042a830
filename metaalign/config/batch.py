"""Settings of the examples in one optimizer step, and of their layout in rows."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from metaalign.config.sections import Section


class BatchConfig(Section):
    """The examples of one optimizer step, and the layout of their tokens in rows."""

    global_batch_size: int = Field(default=64, ge=1)
    """Number of examples in an optimizer step, over all workers. Whole groups (`group_by`) are
    added to a step until it holds at least this many."""

    budget: int = Field(default=1024, ge=8)
    """Largest number of tokens in a row. An example with all its responses must fit in one row; in
    the single layout, each response with its prompt must."""

    rows: int = Field(default=8, ge=1)
    """Largest number of rows in a micro-batch, the part of a step that one worker computes at once.
    Lower it if memory runs out."""

    group_by: Literal["example", "conversation", "meta_prompt"] = "example"
    """Examples with the same value of this form a group. All examples of a group are in the same
    step, so that the tokens they share are computed once. `example` makes each example its own
    group. `meta_prompt` groups examples that have neither System Info nor User Info by
    conversation."""

    max_group_ratio: float = Field(default=2.0, gt=0)
    """Largest allowed group, as a multiple of global_batch_size. A larger group is an error, since
    one step would have to hold all of it."""

    mixture: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] | None = Field(
        default=None, min_length=1
    )
    """Sampling weights by pattern of the source file's path, such as {"*/hh/*": 1, "recipes": 3}.
    Each pattern gets its share of the sampled groups. Every file must match exactly one pattern.
    None uses every group once per epoch."""

    chunk_size_mb: int = Field(default=128, ge=1)
    """Size of a chunk of logits, in MiB of float32. If a micro-batch needs several chunks, each is
    recomputed in the backward pass."""

    @model_validator(mode="after")
    def _check_group_ratio(self) -> "BatchConfig":
        if self.group_by == "example" and self.changed("max_group_ratio"):
            raise ValueError(
                "max_group_ratio has no effect with group_by 'example', where a group is one "
                "example; leave it out, or set group_by to 'conversation' or 'meta_prompt'"
            )
        return self
