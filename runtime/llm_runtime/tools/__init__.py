"""Tools: which form a model's calls have, where they are in its answer, and how to make it call.

`calls` reads JSON as calls; `form` says what a form is, and `json_forms`, `named_forms`, `xml_forms`, `pythonic` and
`harmony` are forms; `forms` knows which of them a chat template writes; `thoughts` and `reader` read an answer that
comes in parts; `lark` and `grammar` make the model write calls; `abilities` says what a model can't do.
"""
