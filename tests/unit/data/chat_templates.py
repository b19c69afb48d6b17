"""Chat templates shaped like those of real families, shortened; and what each writes around an answer."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """`header` is what stands before the answer, after the user's turn; `end` is what ends it; `after` what follows."""

    template: str
    header: str
    end: str
    after: str = ""
    asked: str | None = None
    """The header of the generation prompt; None: the same."""


def turns(body: str, generation: str, start: str = "") -> str:
    return (
        f"{start}{{% for m in messages %}}{body}{{% endfor %}}{{% if add_generation_prompt %}}{generation}{{% endif %}}"
    )


CHATML = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
QWEN3 = (
    "{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% set content = m.content %}{% set thought = '' %}"
    "{% if '</think>' in content %}"
    "{% set thought = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{% if loop.last %}<|im_start|>assistant\n<think>\n{{ thought.strip('\n') }}\n</think>\n\n"
    "{{ content.lstrip('\n') }}"
    "{% else %}<|im_start|>assistant\n{{ content }}{% endif %}<|im_end|>\n"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN3_SWITCHED = QWEN3.removesuffix("{% endif %}") + (
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
"""Also in its generation prompt: without the variable, the model opens its thinking part itself."""
KINDS = {
    "chatml": Kind(turns(CHATML, "<|im_start|>assistant\n"), "<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>", "\n"),
    "qwen3": Kind(
        QWEN3,
        "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        "<|im_end|>",
        "\n",
        "<|im_end|>\n<|im_start|>assistant\n",
    ),
    "think block for generation only": Kind(
        turns(CHATML, "<|im_start|>assistant\n<think>\n\n</think>\n\n"),
        "<|im_end|>\n<|im_start|>assistant\n",
        "<|im_end|>",
        "\n",
        "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    ),
    "glm": Kind(
        turns(
            "{% if m.role == 'user' %}<|user|>\n{{ m.content }}{% elif m.role == 'assistant' %}<|assistant|>\n"
            "<think></think>{{ '\n' + m.content.strip() }}{% else %}<|system|>\n{{ m.content }}{% endif %}",
            "<|assistant|>",
            "[gMASK]<sop>",
        ),
        "<|assistant|>\n<think></think>\n",
        "",
        "",
        "<|assistant|>",
    ),
    "gpt-oss": Kind(
        turns(
            "{% if m.role == 'assistant' %}<|start|>assistant<|channel|>final<|message|>{{ m.content }}"
            "{{ '<|return|>' if loop.last else '<|end|>' }}"
            "{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}",
            "<|start|>assistant",
            "<|start|>system<|message|>Knowledge cutoff\nCurrent date: {{ strftime_now('%Y-%m-%d') }}<|end|>",
        ),
        "<|end|><|start|>assistant<|channel|>final<|message|>",
        "<|return|>",
        "",
        "<|end|><|start|>assistant",
    ),
    "mixtral": Kind(
        turns(
            "{% if m.role == 'user' %} [INST] {{ m.content }} [/INST]{% elif m.role == 'assistant' %} "
            "{{ m.content }}{{ eos_token }}{% endif %}",
            "",
            "{{ bos_token }}",
        ),
        " [/INST] ",
        "</s>",
        "",
        " [/INST]",
    ),
    "llama 2": Kind(
        turns(
            "{% if m.role == 'user' %}{{ bos_token }}[INST] {{ m.content.strip() }} [/INST]"
            "{% elif m.role == 'assistant' %} {{ m.content.strip() }} {{ eos_token }}{% endif %}",
            "",
        ),
        " [/INST] ",
        " </s>",
        "",
        " [/INST]",
    ),
    "llama 3": Kind(
        turns(
            "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>",
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
            "<|begin_of_text|>",
        ),
        "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|eot_id|>",
    ),
    "gemma": Kind(
        turns(
            "{% if m.role != 'system' %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
            "{{ m.content | trim }}<end_of_turn>\n{% endif %}",
            "<start_of_turn>model\n",
            "{{ bos_token }}",
        ),
        "<end_of_turn>\n<start_of_turn>model\n",
        "<end_of_turn>",
        "\n",
    ),
    "deepseek": Kind(
        turns(
            "{% if m.role == 'user' %}<|user|>{{ m.content }}{% elif m.role == 'assistant' %}<|assistant|>"
            "{{ m.content.split('</think>')[-1] }}{{ eos_token }}{% else %}{{ m.content }}{% endif %}",
            "<|assistant|>",
            "{{ bos_token }}",
        ),
        "<|assistant|>",
        "</s>",
    ),
    "no generation prompt, and a footer": Kind(
        "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}END of this text.",
        "<|end|><|assistant|>",
        "<|end|>",
        "END of this text.",
        "<|end|>END of this text.",
    ),
    "words only": Kind(
        turns(
            "{{ 'Question:' if m.role == 'user' else 'Answer:' if m.role == 'assistant' else 'system:' }} "
            "{{ m.content }}\n\n",
            "Answer:",
        ),
        "\n\nAnswer: ",
        "",
        "\n\n",
        "\n\nAnswer:",
    ),
}
