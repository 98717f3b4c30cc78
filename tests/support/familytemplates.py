"""Chat templates of families with calls, thoughts, days and endings of their own.

Each is cut down to what the family does differently, in order and white space as it is published.
"""

# ruff: noqa: E501 (a line break more would stand in the template)

from __future__ import annotations

__all__ = [
    "CHATML_WITHOUT_STOP",
    "COMMAND_R7B",
    "GEMMA2",
    "GLM45",
    "GPT_OSS",
    "GRANITE3",
    "LLAMA31",
    "MISTRAL",
    "NEMOTRON",
    "PHI4",
    "QWEN3_FULL",
    "QWEN3_THINKING",
    "QWQ",
    "R1_DISTILL",
    "SMOLLM3",
]

_QWEN_SYSTEM = """{%- if tools %}{{- '<|im_start|>system\\n' }}\
{%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}\
{{- "# Tools\\n\\n<tools>" }}{%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}\
{{- "\\n</tools><|im_end|>\\n" }}{%- else %}{%- if messages[0].role == 'system' %}\
{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}{%- endif %}{%- endif %}"""

_QWEN_CALLS = """{%- if message.tool_calls %}{%- for tool_call in message.tool_calls %}\
{%- if (loop.first and content) or (not loop.first) %}{{- '\\n' }}{%- endif %}\
{%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}\
{{- '<tool_call>\\n{"name": "' }}{{- tool_call.name }}{{- '", "arguments": ' }}\
{%- if tool_call.arguments is string %}{{- tool_call.arguments }}\
{%- else %}{{- tool_call.arguments | tojson }}{%- endif %}{{- '}\\n</tool_call>' }}\
{%- endfor %}{%- endif %}"""

_QWEN_TOOL = """{%- elif message.role == "tool" %}\
{%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}{{- '<|im_start|>user' }}\
{%- endif %}{{- '\\n<tool_response>\\n' }}{{- content }}{{- '\\n</tool_response>' }}\
{%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}{{- '<|im_end|>\\n' }}{%- endif %}"""


def _qwen3(turn_with_thought: str, prompt: str) -> str:
    return (
        _QWEN_SYSTEM
        + """{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}\
{%- for message in messages[::-1] %}{%- set index = (messages|length - 1) - loop.index0 %}\
{%- if ns.multi_step_tool and message.role == "user" and message.content is string and \
not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}\
{%- set ns.multi_step_tool = false %}{%- set ns.last_query_index = index %}{%- endif %}{%- endfor %}\
{%- for message in messages %}\
{%- if message.content is string %}{%- set content = message.content %}\
{%- else %}{%- set content = '' %}{%- endif %}\
{%- if (message.role == "user") or (message.role == "system" and not loop.first) %}\
{{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}\
{%- elif message.role == "assistant" %}{%- set reasoning_content = '' %}\
{%- if message.reasoning_content is string %}\
{%- set reasoning_content = message.reasoning_content %}{%- else %}{%- if '</think>' in content %}\
{%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1]\
.lstrip('\\n') %}\
{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}{%- endif %}\
{%- if loop.index0 > ns.last_query_index %}{%- if """
        + turn_with_thought
        + """ %}{{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + \
'\\n</think>\\n\\n' + content.lstrip('\\n') }}\
{%- else %}{{- '<|im_start|>' + message.role + '\\n' + content }}{%- endif %}\
{%- else %}{{- '<|im_start|>' + message.role + '\\n' + content }}{%- endif %}"""
        + _QWEN_CALLS
        + "{{- '<|im_end|>\\n' }}"
        + _QWEN_TOOL
        + "{%- endif %}{%- endfor %}{%- if add_generation_prompt %}"
        + prompt
        + "{%- endif %}"
    )


QWEN3_FULL = _qwen3(
    "loop.last or (not loop.last and reasoning_content)",
    "{{- '<|im_start|>assistant\\n' }}{%- if enable_thinking is defined and enable_thinking is false %}"
    "{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}",
)

# The generation prompt opens the thought.
QWEN3_THINKING = _qwen3(
    "loop.last or (not loop.last and reasoning_content)",
    "{{- '<|im_start|>assistant\\n<think>\\n' }}",
)

# The generation prompt opens the thought. Earlier answers lose theirs.
QWQ = (
    _QWEN_SYSTEM
    + """{%- for message in messages %}{%- set content = message.content %}\
{%- if (message.role == "user") or (message.role == "system" and not loop.first) %}\
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}\
{%- elif message.role == "assistant" and not message.tool_calls %}\
{%- if not loop.last %}{%- set content = message.content.split('</think>')[-1].lstrip('\\n') %}\
{%- endif %}{{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}\
{%- elif message.role == "assistant" %}{{- '<|im_start|>' + message.role + '\\n' }}\
{%- if message.content %}{{- content }}{%- endif %}"""
    + _QWEN_CALLS
    + "{{- '<|im_end|>\\n' }}"
    + _QWEN_TOOL
    + "{%- endif %}{%- endfor %}{%- if add_generation_prompt %}"
    "{{- '<|im_start|>assistant\\n<think>\\n' }}{%- endif %}"
)

# Thoughts are cut off every answer, calls want JSON text, and a turn that only calls has None.
R1_DISTILL = """{% set ns = namespace(is_first=false, is_tool=false, system_prompt='') %}\
{%- for message in messages %}{%- if message['role'] == 'system' %}\
{% set ns.system_prompt = message['content'] %}{%- endif %}{%- endfor %}\
{{bos_token}}{{ns.system_prompt}}{%- for message in messages %}\
{%- if message['role'] == 'user' %}{%- set ns.is_tool = false -%}{{'<｜User｜>' + message['content']}}\
{%- endif %}{%- if message['role'] == 'assistant' and message['content'] is none %}\
{%- set ns.is_tool = false -%}{%- for tool in message['tool_calls'] %}\
{%- if not ns.is_first %}{{'<｜Assistant｜><｜tool▁calls▁begin｜><｜tool▁call▁begin｜>' + tool['type'] + \
'<｜tool▁sep｜>' + tool['function']['name'] + '\\n' + '```json' + '\\n' + \
tool['function']['arguments'] + '\\n' + '```' + '<｜tool▁call▁end｜>'}}{%- set ns.is_first = true -%}\
{%- else %}{{'\\n' + '<｜tool▁call▁begin｜>' + tool['type'] + '<｜tool▁sep｜>' + \
tool['function']['name'] + '\\n' + '```json' + '\\n' + tool['function']['arguments'] + '\\n' + '```' + \
'<｜tool▁call▁end｜>'}}{%- endif %}{%- endfor %}\
{{'<｜tool▁calls▁end｜><｜end▁of▁sentence｜>'}}{%- endif %}\
{%- if message['role'] == 'assistant' and message['content'] is not none %}\
{%- if ns.is_tool %}{{'<｜tool▁outputs▁end｜>' + message['content'] + '<｜end▁of▁sentence｜>'}}\
{%- set ns.is_tool = false -%}{%- else %}{% set content = message['content'] %}\
{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}\
{{'<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>'}}{%- endif %}{%- endif %}\
{%- if message['role'] == 'tool' %}{%- set ns.is_tool = true -%}\
{{'<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>' + message['content'] + '<｜tool▁output▁end｜>'}}\
{%- endif %}{%- endfor -%}{% if ns.is_tool %}{{'<｜tool▁outputs▁end｜>'}}{% endif %}\
{% if add_generation_prompt and not ns.is_tool %}{{'<｜Assistant｜><think>\\n'}}{% endif %}"""

# A turn ends with the next turn's role. Earlier thoughts are replaced by empty ones.
GLM45 = """[gMASK]<sop>{%- if tools -%}<|system|>
# Tools
{% for tool in tools %}{{ tool | tojson(ensure_ascii=False) }}
{% endfor %}{%- endif -%}{%- set ns = namespace(last_user_index=-1) %}\
{%- for m in messages %}{%- if m.role == 'user' %}{% set ns.last_user_index = loop.index0 -%}\
{%- endif %}{%- endfor %}\
{% for m in messages %}{%- if m.role == 'user' -%}{{- '<|user|>\\n' + m.content -}}\
{{- '/nothink' if (enable_thinking is defined and not enable_thinking \
and not m.content.endswith("/nothink")) else '' -}}\
{%- elif m.role == 'assistant' -%}<|assistant|>\
{%- set reasoning_content = '' %}{%- set content = m.content or '' %}\
{%- if m.reasoning_content is string %}{%- set reasoning_content = m.reasoning_content %}\
{%- else %}{%- if '</think>' in content %}\
{%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1]\
.lstrip('\\n') %}\
{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}{%- endif %}\
{%- if loop.index0 > ns.last_user_index and reasoning_content -%}\
{{ '\\n<think>' + reasoning_content.strip() + '</think>' }}{%- else -%}{{ '\\n<think></think>' }}\
{%- endif -%}{%- if content.strip() -%}{{ '\\n' + content.strip() }}{%- endif -%}\
{% if m.tool_calls %}{% for tc in m.tool_calls %}{%- if tc.function %}{%- set tc = tc.function %}\
{%- endif %}{{ '\\n<tool_call>' + tc.name }}{% set _args = tc.arguments %}\
{% for k, v in _args.items() %}{{ '\\n<arg_key>' + k + '</arg_key>\\n<arg_value>' }}\
{{ v | tojson(ensure_ascii=False) if v is not string else v }}{{ '</arg_value>' }}{% endfor %}\
{{ '\\n</tool_call>' }}{% endfor %}{% endif %}\
{%- elif m.role == 'tool' -%}{%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}\
{{- '<|observation|>' }}{%- endif %}{{- '\\n<tool_response>\\n' + m.content + '\\n</tool_response>' }}\
{%- elif m.role == 'system' -%}{{ '<|system|>\\n' + m.content }}{%- endif -%}{%- endfor -%}\
{%- if add_generation_prompt -%}<|assistant|>\
{{- '\\n<think></think>' if (enable_thinking is defined and not enable_thinking) else '' -}}\
{%- endif -%}"""

# Two special tokens end a turn.
COMMAND_R7B = """{{ bos_token }}<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>{% for message in messages %}\
{% if message.role|lower == 'system' %}{{ message.content }}{% endif %}{% endfor %}\
{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}<|END_OF_TURN_TOKEN|>\
{%- for message in messages %}{%- if message.role|lower == 'user' %}\
<|START_OF_TURN_TOKEN|><|USER_TOKEN|>{{ message.content }}<|END_OF_TURN_TOKEN|>\
{%- elif message.role|lower == 'assistant' %}<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>\
{%- if message.tool_calls %}<|START_THINKING|>{{ message.content or '' }}<|END_THINKING|>\
<|START_ACTION|>[
{%- for tc in message.tool_calls %}
    {"tool_call_id": "{{ loop.index0 }}", "tool_name": "{{ tc.function.name }}", \
"parameters": {{ tc.function.arguments | tojson }}}{% if not loop.last %},{% endif %}
{%- endfor %}
]<|END_ACTION|><|END_OF_TURN_TOKEN|>\
{%- else %}<|START_RESPONSE|>{{ message.content }}<|END_RESPONSE|><|END_OF_TURN_TOKEN|>{%- endif %}\
{%- elif message.role|lower == 'tool' %}<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|><|START_TOOL_RESULT|>\
{{ message.content | tojson }}<|END_TOOL_RESULT|><|END_OF_TURN_TOKEN|>{%- endif %}{%- endfor %}\
{%- if add_generation_prompt %}<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{%- endif %}"""

# Today's date is in the prompt.
GRANITE3 = """{%- if messages[0]['role'] == 'system' %}\
{%- set system_message = messages[0]['content'] %}{%- set loop_messages = messages[1:] %}\
{%- else %}{%- set system_message = "Knowledge Cutoff Date: April 2024.\\nToday's Date: " + \
strftime_now('%B %d, %Y') + "." %}{%- set loop_messages = messages %}{%- endif %}\
{{- '<|start_of_role|>system<|end_of_role|>' + system_message + '<|end_of_text|>\\n' }}\
{%- if tools %}{{- '<|start_of_role|>tools<|end_of_role|>' }}{{- tools | tojson(indent=4) }}\
{{- '<|end_of_text|>\\n' }}{%- endif %}\
{%- for message in loop_messages %}\
{{- '<|start_of_role|>' + message['role'] + '<|end_of_role|>' + message['content'] + \
'<|end_of_text|>\\n' }}\
{%- if loop.last and add_generation_prompt %}{{- '<|start_of_role|>assistant<|end_of_role|>' }}\
{%- endif %}{%- endfor %}"""

# Its tags include the assistant's header and the line break after the stop.
SMOLLM3 = """{%- if messages[0].role == "system" -%}{%- set custom = messages[0].content -%}\
{%- else -%}{%- set custom = "" -%}{%- endif -%}\
{{- "<|im_start|>system\\n## Metadata\\n\\nToday Date: " ~ strftime_now("%d %B %Y") ~ "\\n" ~ custom ~ \
"<|im_end|>\\n" -}}\
{%- for message in messages -%}{%- if message.role == "user" -%}\
{{ "<|im_start|>" + message.role + "\\n" + message.content + "<|im_end|>\\n" }}\
{%- elif message.role == "assistant" -%}{% generation %}\
{{ "<|im_start|>assistant\\n" + message.content.lstrip("\\n") + "<|im_end|>\\n" }}{% endgeneration %}\
{%- elif message.role == "tool" -%}\
{{ "<|im_start|>user\\n" + message.content + "<|im_end|>\\n" }}{%- endif -%}{%- endfor -%}\
{%- if add_generation_prompt -%}{{ "<|im_start|>assistant\\n" }}{%- endif -%}"""

LLAMA31 = """{{- bos_token }}{%- if not date_string is defined %}{%- set date_string = "26 Jul 2024" %}\
{%- endif %}{%- if messages[0]['role'] == 'system' %}\
{%- set system_message = messages[0]['content']|trim %}{%- set messages = messages[1:] %}\
{%- else %}{%- set system_message = "" %}{%- endif %}\
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}\
{{- "Today Date: " + date_string + "\\n\\n" }}\
{%- if tools is not none %}{%- for t in tools %}{{- t | tojson(indent=4) }}{{- "\\n\\n" }}\
{%- endfor %}{%- endif %}{{- system_message }}{{- "<|eot_id|>" }}\
{%- for message in messages %}\
{%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}\
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + \
'<|eot_id|>' }}\
{%- elif 'tool_calls' in message %}{%- if not message.tool_calls|length == 1 %}\
{{- raise_exception("This model only supports single tool-calls at once!") }}{%- endif %}\
{%- set tool_call = message.tool_calls[0].function %}\
{%- if builtin_tools is defined and tool_call.name in builtin_tools %}\
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}\
{{- "<|python_tag|>" + tool_call.name + ".call(" }}\
{%- for arg_name, arg_val in tool_call.arguments | items %}{{- arg_name + '="' + arg_val + '"' }}\
{%- if not loop.last %}{{- ", " }}{%- endif %}{%- endfor %}{{- ")" }}\
{%- else %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}\
{{- '{"name": "' + tool_call.name + '", ' }}{{- '"parameters": ' }}\
{{- tool_call.arguments | tojson }}{{- "}" }}{%- endif %}\
{%- if builtin_tools is defined %}{{- "<|eom_id|>" }}{%- else %}{{- "<|eot_id|>" }}{%- endif %}\
{%- elif message.role == "tool" or message.role == "ipython" %}\
{{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}\
{%- if message.content is mapping or message.content is iterable %}{{- message.content | tojson }}\
{%- else %}{{- message.content }}{%- endif %}{{- "<|eot_id|>" }}{%- endif %}{%- endfor %}\
{%- if add_generation_prompt %}\
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""

# The assistant's turn has no header. A text beside calls is dropped.
MISTRAL = """{%- if messages[0]["role"] == "system" %}{%- set system_message = messages[0]["content"] %}\
{%- set loop_messages = messages[1:] %}{%- else %}{%- set loop_messages = messages %}{%- endif %}\
{%- set ns = namespace(last_user=0) %}{%- for message in loop_messages %}\
{%- if message["role"] == "user" %}{%- set ns.last_user = loop.index0 %}{%- endif %}{%- endfor %}\
{{- bos_token }}{%- for message in loop_messages %}\
{%- if message["role"] == "user" %}{%- if tools is not none and loop.index0 == ns.last_user %}\
{{- "[AVAILABLE_TOOLS] " + (tools | tojson) + "[/AVAILABLE_TOOLS]" }}{%- endif %}\
{%- if loop.last and system_message is defined %}\
{{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}\
{%- else %}{{- "[INST] " + message["content"] + "[/INST]" }}{%- endif %}\
{%- elif message.tool_calls is defined and message.tool_calls is not none %}\
{{- "[TOOL_CALLS] [" }}{%- for tool_call in message.tool_calls %}\
{%- set out = tool_call.function|tojson %}{{- out[:-1] }}\
{%- if not tool_call.id is defined or tool_call.id|length != 9 %}\
{{- raise_exception("Tool call IDs should be alphanumeric strings with length 9!") }}{%- endif %}\
{{- ', "id": "' + tool_call.id + '"}' }}{%- if not loop.last %}{{- ", " }}{%- else %}\
{{- "]" + eos_token }}{%- endif %}{%- endfor %}\
{%- elif message["role"] == "assistant" %}{{- " " + message["content"]|trim + eos_token}}\
{%- elif message["role"] == "tool" %}{{- '[TOOL_RESULTS] {"content": ' + message.content|string + ", " }}\
{{- '"call_id": "' + message.tool_call_id + '"}[/TOOL_RESULTS]' }}\
{%- else %}{{- raise_exception("Only user and assistant roles are supported") }}{%- endif %}\
{%- endfor %}"""

# Channels of one answer. Its last turn ends with another token than the others.
GPT_OSS = """{{- "<|start|>system<|message|>Current date: " + strftime_now("%Y-%m-%d") + "<|end|>" }}\
{%- if tools %}{{- "<|start|>developer<|message|>" }}{%- for tool in tools %}\
{{- "type " + tool.function.name + "\\n" }}{%- endfor %}{{- "<|end|>" }}{%- endif %}\
{%- set last_tool_call = namespace(name=none) %}\
{%- for message in messages %}{%- if message.role == 'assistant' %}\
{%- if "tool_calls" in message %}{%- set tool_call = message.tool_calls[0] %}\
{%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}\
{%- if message.content and message.thinking %}\
{{- raise_exception("Cannot pass both content and thinking beside tool calls!") }}\
{%- elif message.content or message.thinking %}\
{{- "<|start|>assistant<|channel|>analysis<|message|>" + (message.content or message.thinking) + \
"<|end|>" }}{%- endif %}{{- "<|start|>assistant to=" }}\
{{- "functions." + tool_call.name + "<|channel|>commentary json<|message|>" }}\
{{- tool_call.arguments|tojson }}{{- "<|call|>" }}{%- set last_tool_call.name = tool_call.name %}\
{%- elif loop.last and not add_generation_prompt %}\
{%- if "thinking" in message %}\
{{- "<|start|>assistant<|channel|>analysis<|message|>" + message.thinking + "<|end|>" }}{%- endif %}\
{{- "<|start|>assistant<|channel|>final<|message|>" + message.content + "<|return|>" }}\
{%- else %}{{- "<|start|>assistant<|channel|>final<|message|>" + message.content + "<|end|>" }}\
{%- set last_tool_call.name = none %}{%- endif %}\
{%- elif message.role == 'tool' -%}\
{{- "<|start|>functions." + last_tool_call.name }}\
{{- " to=assistant<|channel|>commentary<|message|>" + message.content|tojson + "<|end|>" }}\
{%- elif message.role == 'user' -%}{{- "<|start|>user<|message|>" + message.content + "<|end|>" }}\
{%- elif message.role in ['system', 'developer'] -%}\
{{- "<|start|>developer<|message|>" + message.content + "<|end|>" }}\
{%- endif -%}{%- endfor -%}{%- if add_generation_prompt -%}{{- "<|start|>assistant" }}{%- endif -%}"""

# An empty thought before every answer that has none. The generation prompt opens a thought.
NEMOTRON = """{{ bos_token }}{%- for message in messages %}\
{%- if message['role'] == 'assistant' %}{%- set content = message['content'].strip() %}\
{%- if '</think>' not in content %}{%- set content = '<think></think>' + content %}{%- endif %}\
{{- '<SPECIAL_11>Assistant\\n' + content + '\\n<SPECIAL_12>\\n' }}\
{%- else %}{{- '<SPECIAL_11>' + message['role'] | capitalize + '\\n' + message['content'] + '\\n' }}\
{%- endif %}{%- endfor %}{%- if add_generation_prompt %}{{- '<SPECIAL_11>Assistant\\n' }}\
{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think></think>' }}\
{%- else %}{{- '<think>\\n' }}{%- endif %}{%- endif %}"""

# An end of text follows the conversation.
PHI4 = """{% for message in messages %}\
{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}"""

GEMMA2 = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}\
{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}\
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}\
{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}\
{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}"""

CHATML_WITHOUT_STOP = """{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + \
message['content'] + '\\n' }}{% endfor %}{% if add_generation_prompt %}\
{{ '<|im_start|>assistant\\n' }}{% endif %}"""
