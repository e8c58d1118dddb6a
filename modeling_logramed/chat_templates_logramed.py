"""
The chat templates of `LoGraMedProcessor`, by name.

Each takes messages whose `content` is a string or a list of `{"type": "image"}` and `{"type": "text", "text": ...}`
parts, and writes the image placeholder for an image part. `{% generation %}` encloses what the model has to write in
an assistant turn, including the end of the turn. All text is inside `{{- -}}`, so the layout of the templates adds
no whitespace.
"""

# Missing and null texts are skipped: `datasets` gives every part every key. A line break separates an image from its
# neighbours; line breaks already in the data are not doubled.
_WRITE_CONTENT = r"""
{%- set placeholder = image_token | default('<image>') -%}
{%- macro write_content(content) -%}
  {%- set written = namespace(text='', ends_with_image=false) -%}
  {%- for part in ([{'type': 'text', 'text': content}] if content is string else content or []) -%}
    {%- if part['type'] == 'image' -%}
      {%- set written.text = (written.text.rstrip() + '\n' if written.text else '') + placeholder -%}
      {%- set written.ends_with_image = true -%}
    {%- elif part['type'] != 'text' -%}
      {{- raise_exception('A content part has type image or text, not ' ~ part['type']) -}}
    {%- elif part['text'] -%}
      {%- set text = '\n' + part['text'].lstrip() if written.ends_with_image else part['text'] -%}
      {%- set written.text = written.text + text -%}
      {%- set written.ends_with_image = false -%}
    {%- endif -%}
  {%- endfor -%}
  {{- written.text | trim -}}
{%- endmacro -%}
"""

# Goes before a language model's own template, which may accept only strings as contents.
_FLATTEN_CONTENTS = r"""
{%- set flattened = namespace(messages=[]) -%}
{%- for message in messages -%}
  {%- set content = write_content(message['content']) -%}
  {%- set flattened.messages = flattened.messages + [dict(message, content=content)] -%}
{%- endfor -%}
{%- set messages = flattened.messages -%}
"""


def with_image_parts(template: str) -> str:
    """Extend a language model's chat template to messages whose contents may have image parts."""
    return _WRITE_CONTENT + _FLATTEN_CONTENTS + template


# User and assistant turns of Vicuna 1.1, inside the branches by role.
_VICUNA_TURNS = r"""{{- 'USER: ' + write_content(message['content']) + ' ' -}}
  {%- elif message['role'] == 'assistant' -%}
    {{- 'ASSISTANT:' -}}
    {%- generation -%}
      {{- ' ' + write_content(message['content']) + (eos_token or '\n') -}}
    {%- endgeneration -%}
"""

# The layout of Vicuna 1.1, without its default system text.
DEFAULT_CHAT_TEMPLATE = (
    _WRITE_CONTENT
    + r"""
{{- bos_token or '' -}}
{%- for message in messages -%}
  {%- if message['role'] == 'system' -%}
    {{- write_content(message['content']) + '\n' -}}
  {%- elif message['role'] == 'user' -%}
    """
    + _VICUNA_TURNS
    + r"""  {%- else -%}
    {{- raise_exception('A message has role system, user or assistant, not ' ~ message['role']) -}}
  {%- endif -%}
{%- endfor -%}
{{- 'ASSISTANT:' if add_generation_prompt else '' -}}
"""
)

_LLAVA_MED_SYSTEM = r"""
{%- set system = "A chat between a curious human and an artificial intelligence assistant. The assistant gives \
helpful, detailed, and polite answers to the human's questions." -%}
{%- if messages and messages[0]['role'] == 'system' -%}
  {%- set system = write_content(messages[0]['content']) -%}
{%- endif -%}
""".replace("\\\n", "")

_LLAVA_MED_OTHER_ROLES = r"""
  {%- elif message['role'] != 'system' or not loop.first -%}
    {{- raise_exception('After the first message, the role is user or assistant, not ' ~ message['role']) -}}
  {%- endif -%}
"""

# LLaVA-Med v1.0.0 (LLaVA v0), as it was trained. The tokenizer adds the beginning-of-sequence token, and the model
# learns to end its turn with "###".
LLAVA_MED_V0_CHAT_TEMPLATE = (
    _WRITE_CONTENT
    + _LLAVA_MED_SYSTEM
    + r"""
{{- system + '\n\n###' -}}
{%- for message in messages -%}
  {%- if message['role'] == 'user' -%}
    {{- ' Human: ' + write_content(message['content']) + '\n###' -}}
  {%- elif message['role'] == 'assistant' -%}
    {{- ' Assistant:' -}}
    {%- generation -%}
      {{- ' ' + write_content(message['content']) + '\n###' -}}
    {%- endgeneration -%}
"""
    + _LLAVA_MED_OTHER_ROLES
    + r"""
{%- endfor -%}
{{- ' Assistant:' if add_generation_prompt else ' ' -}}
"""
)

# LLaVA-Med v1.0.0, as it was evaluated (its conversation `simple`), which differs from how it was trained: a greeting
# comes first, the image follows the question, and the model has to write "Assistant:" itself.
LLAVA_MED_V0_EVAL_CHAT_TEMPLATE = (
    _WRITE_CONTENT
    + _LLAVA_MED_SYSTEM
    + r"""
{%- macro write_question(content) -%}
  {%- if content is string -%}
    {{- content | trim -}}
  {%- else -%}
    {{- write_content((content or []) | selectattr('type', 'ne', 'image') | list) -}}
    {%- for part in content or [] if part['type'] == 'image' -%}
      {{- '\n' + placeholder -}}
    {%- endfor -%}
  {%- endif -%}
{%- endmacro -%}
{{- system + '###Human: Hi!###Assistant: Hi there!  How can I help you today?\n###' -}}
{%- for message in messages -%}
  {%- if message['role'] == 'user' -%}
    {{- 'Human: ' + write_question(message['content']) + '###' -}}
  {%- elif message['role'] == 'assistant' -%}
    {%- generation -%}
      {{- 'Assistant: ' + write_content(message['content']) + '###' -}}
    {%- endgeneration -%}
"""
    + _LLAVA_MED_OTHER_ROLES
    + r"""
{%- endfor -%}
"""
)

# LLaVA-Med v1.5, in Mistral's instruction format: a system text goes inside the first instruction.
LLAVA_MED_V1_5_CHAT_TEMPLATE = (
    _WRITE_CONTENT
    + r"""
{{- bos_token or '' -}}
{%- set system = namespace(text='') -%}
{%- for message in messages -%}
  {%- if message['role'] == 'system' and loop.first -%}
    {%- set system.text = '<<SYS>>\n' + write_content(message['content']) + '\n<</SYS>>\n\n' -%}
  {%- elif message['role'] == 'user' -%}
    {{- '[INST] ' + system.text + write_content(message['content']) + ' [/INST]' -}}
    {%- set system.text = '' -%}
  {%- elif message['role'] == 'assistant' -%}
    {%- generation -%}
      {{- ' ' + write_content(message['content']) + ' ' + (eos_token or '\n') -}}
    {%- endgeneration -%}
"""
    + _LLAVA_MED_OTHER_ROLES
    + r"""
{%- endfor -%}
"""
)

# LLaVA v1 and v1.5: Vicuna 1.1 with its system text.
LLAVA_V1_CHAT_TEMPLATE = (
    _WRITE_CONTENT
    + _LLAVA_MED_SYSTEM.replace("curious human", "curious user").replace("the human's", "the user's")
    + r"""
{{- (bos_token or '') + system + ' ' -}}
{%- for message in messages -%}
  {%- if message['role'] == 'user' -%}
    """
    + _VICUNA_TURNS
    + _LLAVA_MED_OTHER_ROLES
    + r"""
{%- endfor -%}
{{- 'ASSISTANT:' if add_generation_prompt else '' -}}
"""
)

CHAT_TEMPLATES = {
    "default": DEFAULT_CHAT_TEMPLATE,
    "llava_med_v0": LLAVA_MED_V0_CHAT_TEMPLATE,
    "llava_med_v0_eval": LLAVA_MED_V0_EVAL_CHAT_TEMPLATE,
    "llava_med_v1_5": LLAVA_MED_V1_5_CHAT_TEMPLATE,
    "llava_v1": LLAVA_V1_CHAT_TEMPLATE,
}
