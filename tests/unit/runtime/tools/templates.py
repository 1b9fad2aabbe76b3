"""The parts of real chat templates by which their forms of calls are known, made short."""

QWEN = (
    "{% if tools %}<|system|># Tools{% for tool in tools %}\n{{ tool | tojson }}{% endfor"
    ' %}\nAnswer with <tool_call>\n{"name": <function-name>, "arguments":'
    " <args-json-object>}\n</tool_call><|end|>{% endif %}{% for m in messages %}<|{{ m.role }}|>{{"
    " m.content }}{% for call in m.tool_calls %}<tool_call>\n{{ {'name': call.function.name,"
    " 'arguments': call.function.arguments} | tojson }}\n</tool_call>{% endfor %}<|end|>{% endfor"
    " %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
LLAMA = (
    "{%- if custom_tools is defined %}{%- set tools = custom_tools %}{%- endif %}{%- if not tools"
    " is defined %}{%- set tools = none %}{%- endif %}{%- if tools is not none %}{{- 'Respond in"
    ' the format {"name": function name, "parameters": dictionary of argument name and its'
    " value}.' }}{%- endif %}{% for m in messages %}{{ m.content }}{% endfor %}"
)
MISTRAL = (
    "{%- if not tools is defined %}{%- set tools = none %}{%- endif %}"
    '{%- if tools is not none %}{{- "[AVAILABLE_TOOLS][" }}{%- endif %}'
    '{% for m in messages %}{%- if m.tool_calls is defined %}{{- "[TOOL_CALLS][" }}{%- endif %}'
    "{{ m.content }}{% endfor %}"
)
UNKNOWN = (
    "{% if tools %}{{ tools }}{% endif %}{% for m in messages %}{{ m.content }}{% for c in"
    " m.tool_calls %}<tool_call>CALL {{ c.function.name }} WITH {{ c.function.arguments"
    " }}</tool_call>{% endfor %}{% endfor %}"
)
"""Calls that nobody reads."""
NO_TOOLS = "{% for m in messages %}{{ m.content }}{% endfor %}You have no tools and no <tool_call>."
