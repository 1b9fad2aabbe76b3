"""LangChain with an LLM Operator endpoint: answers, streams, structured output, tools.

    pip install langchain-openai
    LLM_URL=http://localhost:8000/v1 LLM_KEY=… LLM_MODEL=support-bot python langchain_chat.py

Tools need a model whose chat template knows them; everything else works with any chat model.
"""

import os

from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field, SecretStr


class Place(BaseModel):
    """Where something is."""

    city: str = Field(description="Name of the city")


@tool
def weather(city: str) -> str:
    """Tell the weather of a city."""
    return f"It rains in {city}."


def main() -> None:
    """Ask in every way that LangChain has."""
    model = ChatOpenAI(
        model=os.environ["LLM_MODEL"],
        base_url=os.environ["LLM_URL"],
        api_key=SecretStr(os.environ["LLM_KEY"]),
        max_retries=3,
    )
    print("invoke:", model.invoke("Say hello.").content)
    print("stream:", "".join(str(part.content) for part in model.stream("Say hello.")))

    place = model.with_structured_output(Place, method="json_schema").invoke(
        "Where is the town hall of Kiel?"
    )
    print("structured:", place)

    question = HumanMessage("What is the weather in Kiel?")
    asked = model.bind_tools([weather], tool_choice="weather").invoke([question])
    assert isinstance(asked, AIMessage)
    results = [
        ToolMessage(weather.invoke(call["args"]), tool_call_id=call["id"])
        for call in asked.tool_calls
    ]
    print("calls:", [(call["name"], call["args"]) for call in asked.tool_calls])
    print(
        "answer:",
        model.bind_tools([weather], tool_choice="none").invoke([question, asked, *results]).content,
    )


if __name__ == "__main__":
    main()
