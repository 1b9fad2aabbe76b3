"""Tools: which form a model's calls have, where they are in its answer, and how to make it call.

`calls` reads JSON as calls, `forms` knows how models write them, `reader` finds them in an answer that comes in parts,
`grammar` makes the model write them.
"""
