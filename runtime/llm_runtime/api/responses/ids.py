"""Ids of responses and of their items. An item's id tells its response, so that nothing else has to
know where an item is kept."""

import re

PREFIXES = {
    "message": "msg",
    "reasoning": "rs",
    "function_call": "fc",
    "function_call_output": "fco",
}
"""Beginnings of items' ids, by the type of the item; clients look at them."""
RESPONSE = "resp_"

_ITEM = re.compile(rf"(?:{'|'.join(PREFIXES.values())})_([0-9a-f]{{32}})_i?[0-9]+")


def output_id(response_id: str, type_: str, index: int) -> str:
    """The id of an item that a response wrote."""
    return f"{PREFIXES[type_]}_{response_id.removeprefix(RESPONSE)}_{index}"


def input_id(response_id: str, type_: str, index: int) -> str:
    """The id of an item that a response was asked with."""
    return f"{PREFIXES[type_]}_{response_id.removeprefix(RESPONSE)}_i{index}"


def response_of(item_id: str) -> str:
    """The response that an item belongs to; "" if the id is none of ours."""
    found = _ITEM.fullmatch(item_id)
    return f"{RESPONSE}{found[1]}" if found else ""
