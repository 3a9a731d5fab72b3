"""What rewards, judges and those who use them agree on. It imports nothing of ours, and all else may import it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from pydantic import BaseModel

Messages = list[dict[str, str]]
# As TRL hands it to a reward: plain text, or the messages of the turn.
Completion = str | Messages
# reward(completions, <columns of the data set>, **kwargs): a score for each completion, None where it has none.
Reward = Callable[..., list[float | None]]
# prefer(prompts, first, second): the probability that the first response is the better one, a number for each prompt;
# None where the judge failed.
Prefer = Callable[[Sequence[Any], Sequence[str], Sequence[str]], Sequence[float | None]]
Schema = TypeVar("Schema", bound="BaseModel")


class Failure(Exception):
    """A request that brought no verdict. The message is the reason, `again` whether another try may help, `after` how
    many seconds the server wants to be left alone before it."""

    def __init__(self, reason: str, *, again: bool = False, after: float = 0.0) -> None:
        super().__init__(reason)
        self.again, self.after = again, after


@dataclass(frozen=True, slots=True)
class Reply:
    """What a backend wrote: text that should be JSON, and the tokens it read and wrote for it (0: unknown)."""

    text: str
    prompt_tokens: int = 0
    reply_tokens: int = 0


class Backend(Protocol):
    """A model that judges. `reply` is called from several threads at once."""

    name: str
    """Who judges, for messages and the cache's keys: no two judges have the same."""

    def reply(self, prompt: str, schema: "type[BaseModel]") -> Reply:
        """The reply to one user message, wanted in the JSON of `schema`. Raises Failure."""
        ...
