"""Tool calls: the form in which a model writes them, how to find them in its answer,
and how to force them.

`calls` parses JSON as calls. `form` defines what a form is; `json_forms`, `named_forms`,
`xml_forms`, `pythonic` and `harmony` implement forms; `forms` detects which one a chat template
uses. `thoughts` and `reader` parse a streamed answer. `lark` and `grammar` constrain the model to
write calls. `abilities` says what a model can't do.
"""
