"""A judge behind an OpenAI-compatible server: vLLM, llama.cpp, Ollama, `transformers serve`, or a hosted one."""

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from rewards.contract import Failure, Reply
from rewards.local_judge import bounded

if TYPE_CHECKING:
    from pydantic import BaseModel

MAX_REPLY_TOKENS = 1024


class Server:
    """One model of one server, asked greedily. Replies are constrained to the schema where the server can do that.

    `address` is "http://host:port", with or without "/v1"; `model` its name on the server, or None for the first that
    the server lists; `timeout` the seconds without a word from the server after which a request has failed. Raises
    ValueError for no server there, a key it refuses, no such model.
    """

    def __init__(self, address: str, model: str | None, *, timeout: float) -> None:
        import openai

        if "@" in address or "?" in address or "#" in address:
            # Not repeated: the address would stand in configurations, logs and the names of cached verdicts.
            raise ValueError(
                "the judge's address holds more than http://host:port/v1, such as a name or a key: pass the key in "
                "OPENAI_API_KEY instead"
            )
        self.address = f"{address.rstrip('/').removesuffix('/v1')}/v1"
        self.timeout = timeout
        self._key = os.environ.get("OPENAI_API_KEY", "")
        self._client = openai.OpenAI(
            base_url=self.address,
            api_key=self._key or "none",
            max_retries=0,  # `Judge` tries again, and counts it
            timeout=timeout,
        )
        self._constrained = True
        self.model = self._find(model)
        self.name = f"{self.address} {self.model}"

    def reply(self, prompt: str, schema: "type[BaseModel]") -> Reply:
        extra: dict[str, Any] = {}
        if self._constrained:
            # Without bounds a small model repeats itself until its reply is cut off, and nothing of it can be read.
            # A larger one may say why before it scores, so optional fields stay.
            wanted = bounded(schema.model_json_schema(), optional=True)
            json_schema = {"name": schema.__name__, "schema": wanted}
            extra["response_format"] = {"type": "json_schema", "json_schema": json_schema}
        try:
            return self._complete(self.model, prompt, MAX_REPLY_TOKENS, extra)
        except Failure as failure:
            # Some servers know no schemas and say so: the prompt describes the JSON as well.
            if extra and not failure.again and ("response_format" in str(failure) or "json_schema" in str(failure)):
                self._constrained = False
                raise Failure(str(failure), again=True) from failure
            raise

    def _complete(self, model: str, prompt: str, max_tokens: int, extra: dict[str, Any]) -> Reply:
        import openai

        try:
            completion = self._client.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": prompt}],
                temperature=0,
                max_tokens=max_tokens,
                **extra,
            )
            usage = completion.usage
            return Reply(
                completion.choices[0].message.content or "",
                usage.prompt_tokens if usage else 0,
                usage.completion_tokens if usage else 0,
            )
        except openai.OpenAIError as error:
            raise self._failure(error) from error
        except (AttributeError, IndexError, TypeError, ValueError) as error:
            raise Failure("the server's reply is no chat completion", again=True) from error

    def _find(self, model: str | None) -> str:
        import openai

        listed: list[str] = []
        try:
            listed = [entry.id for entry in self._client.models.list()]
        except openai.APIConnectionError as error:
            raise ValueError(
                f"no judge answers at {self.address} ({self._failure(error)}): start the server or name local instead"
            ) from error
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise ValueError(
                f"the judge at {self.address} refuses the key ({self._failure(error)}): set OPENAI_API_KEY"
            ) from error
        except (openai.OpenAIError, AttributeError, TypeError, ValueError):
            pass  # not every server keeps a list
        if model is None and not listed:
            raise ValueError(f"the server at {self.address} lists no model: name the one that shall judge")
        if model is None or model in listed:
            return model or listed[0]
        # `transformers serve FOLDER` does not list its folder.
        try:
            self._complete(model, "Hi", 1, {})
        except Failure as failure:
            raise ValueError(
                f"the server at {self.address} does not judge with the model {model!r} ({failure})"
                + (f": it lists {', '.join(listed[:5])}" if listed else "")
            ) from failure
        return model

    def _failure(self, error: Exception) -> Failure:
        """The reason in few words; the key is in none of them, even where a server repeats it."""
        import openai

        again, after = True, 0.0
        if isinstance(error, openai.APITimeoutError):
            reason = f"no answer within {self.timeout:g} s"
        elif isinstance(error, openai.APIConnectionError):
            reason = f"no connection: {error.__cause__ or error}"
        elif isinstance(error, openai.APIStatusError):
            reason = f"HTTP {error.status_code}: {error.message}"
            again = error.status_code == 429 or error.status_code >= 500
            with suppress(ValueError):  # it may be a date
                after = float(error.response.headers.get("retry-after", 0))
        else:
            reason = str(error)
        if self._key:
            reason = reason.replace(self._key, "***")
        shown = "".join(character if character.isprintable() else " " for character in reason)  # no escape codes
        return Failure(" ".join(shown.split())[:200], again=again, after=after)
