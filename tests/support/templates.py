"""Chat templates with the same output as the families' own, in order and white space."""

from __future__ import annotations

__all__ = [
    "CHATML",
    "GEMMA",
    "GEMMA3",
    "GLM",
    "IDEFICS3",
    "INTERNVL",
    "LLAMA2",
    "LLAMA3",
    "LLAVA",
    "LLAVA_ONEVISION",
    "QWEN3",
    "QWEN_VL",
    "TAGGED",
]

CHATML = """{% for message in messages %}<|im_start|>{{ message['role'] }}
{{ message['content'] }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

LLAMA3 = """{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}\
<|end_header_id|>

{{ message['content'] | trim }}<|eot_id|>{% endfor %}\
{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>

{% endif %}"""

LLAMA2 = """{% if messages[0]['role'] == 'system' %}\
{% set rest = messages[1:] %}{% set system = messages[0]['content'] %}\
{% else %}{% set rest = messages %}{% set system = '' %}{% endif %}\
{% for message in rest %}\
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('roles must alternate user/assistant/user/assistant') }}{% endif %}\
{% if message['role'] == 'user' %}\
{{ bos_token + '[INST] ' + ('<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' if loop.first and system \
else '') + message['content'].strip() + ' [/INST]' }}\
{% else %}{{ ' ' + message['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"""

GEMMA = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}\
{{ raise_exception('System role not supported') }}{% endif %}\
{% for message in messages %}\
{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}\
<start_of_turn>{{ role }}
{{ message['content'] | trim }}<end_of_turn>
{% endfor %}{% if add_generation_prompt %}<start_of_turn>model
{% endif %}"""

# Earlier answers lose their thoughts. The last one always has them, possibly empty.
QWEN3 = """{% set last = namespace(query=0) %}{% for message in messages %}\
{% if message['role'] == 'user' %}{% set last.query = loop.index0 %}{% endif %}{% endfor %}\
{% for message in messages %}{% if message['role'] == 'assistant' %}\
{% set content = message['content'] %}{% set thought = '' %}\
{% if '</think>' in content %}\
{% set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}\
{% set content = content.split('</think>')[-1].lstrip('\\n') %}{% endif %}\
{{ '<|im_start|>assistant\\n' }}\
{% if loop.index0 > last.query and (loop.last or thought) %}\
{{ '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}\
{% else %}{{ content }}{% endif %}{{ '<|im_end|>\\n' }}\
{% else %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}\
{% endif %}{% endfor %}{% if add_generation_prompt %}\
{{ '<|im_start|>assistant\\n' }}{% endif %}"""

# The turn's end is the next turn's opening token, so that the last answer ends in nothing.
GLM = """[gMASK]<sop>{% for message in messages %}<|{{ message['role'] }}|>
{{ message['content'] }}{% endfor %}{% if add_generation_prompt %}<|assistant|>
{% endif %}"""

TAGGED = CHATML.replace(
    "{{ message['content'] }}<|im_end|>\n",
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}"
    "{% endgeneration %}{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\\n' }}",
)

QWEN_VL = """{% for message in messages %}{% if loop.first and message['role'] != 'system' %}\
<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif %}<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}<|im_end|>
{% else %}{% for content in message['content'] %}\
{% if content['type'] == 'image' or 'image' in content %}\
<|vision_start|><|image_pad|><|vision_end|>\
{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

# As LLaVA 1.5 is published: no beginning, and a turn ends with a space.
LLAVA = """{% for message in messages %}{% if message['role'] != 'system' %}\
{{ message['role'].upper() + ': ' }}{% endif %}\
{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}\
{{ '<image>\\n' }}{% endfor %}{% if message['role'] != 'assistant' %}\
{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}\
{{ content['text'] + ' ' }}{% endfor %}{% else %}\
{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}\
{% generation %}{{ content['text'] + ' ' }}{% endgeneration %}{% endfor %}{% endif %}\
{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"""

# As LLaVA-OneVision is published: the tags include the line break, but not the end of the turn.
LLAVA_ONEVISION = """{% for message in messages %}{{ '<|im_start|>' + message['role'] + ' ' }}\
{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}\
{{ '<image>' }}{% endfor %}{% if message['role'] != 'assistant' %}\
{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}\
{{ '\\n' + content['text'] }}{% endfor %}{% else %}\
{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}\
{% generation %}{{ '\\n' + content['text'] }}{% endgeneration %}{% endfor %}{% endif %}\
{{ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}\
{{ '<|im_start|>assistant\\n' }}{% endif %}"""

IDEFICS3 = """<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}\
{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}\
{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}\
{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>
{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"""

INTERNVL = """{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}\
{% if message['content'] is string %}{{ message['content'] }}{% else %}\
{% for content in message['content'] %}{% if content['type'] == 'image' %}{{ '<IMG_CONTEXT>\\n' }}\
{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}\
{{ '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}\
{{ '<|im_start|>assistant\\n' }}{% endif %}"""

# The system message becomes the beginning of the first question.
GEMMA3 = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}\
{% set first = messages[0]['content'] if messages[0]['content'] is string \
else messages[0]['content'][0]['text'] %}{% set first = first + '\\n\\n' %}\
{% set loop_messages = messages[1:] %}\
{% else %}{% set first = '' %}{% set loop_messages = messages %}{% endif %}\
{% for message in loop_messages %}\
{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}\
{{ '<start_of_turn>' + role + '\\n' + (first if loop.first else '') }}\
{% if message['content'] is string %}{{ message['content'] | trim }}{% else %}\
{% for item in message['content'] %}{% if item['type'] == 'image' %}{{ '<start_of_image>' }}\
{% elif item['type'] == 'text' %}{{ item['text'] | trim }}{% endif %}{% endfor %}{% endif %}\
{{ '<end_of_turn>\\n' }}{% endfor %}{% if add_generation_prompt %}\
{{ '<start_of_turn>model\\n' }}{% endif %}"""
