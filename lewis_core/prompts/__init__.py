"""Every prompt of the system, as text: what a speaker, a listener or an evaluated model is asked.

Two sets exist. ``concise`` is what the pocket models were trained on, and any instruct model
understands it. ``instruct`` spells the task out for instruct models of 2B to 8B parameters. A
prompt holds category words and descriptions only: never the name or the id of a concept, so that
no answer can be copied from it.

The answers are read as the word yes or no, or as one letter.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lewis_core.errors import ConfigError

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class PromptSet:
    """The templates of one style; the methods fill them in.

    A template names its gaps ``{category}``, ``{description}``, ``{question}``, ``{options}`` and
    ``{text}``. Text that is filled in is never read as a template again, so braces in it are safe.
    """

    name: str
    speaker_template: str
    match_template: str
    recognition_template: str
    recognition_bare_template: str
    identification_template: str
    vqa_template: str
    vqa_bare_template: str
    judge_state_template: str
    judge_location_template: str
    option_template: str
    option_separator: str

    def speaker(self, category: str) -> str:
        """Ask the speaker for a description of the thing in the image."""
        return self.speaker_template.format(category=category)

    def match(self, category: str, description: str) -> str:
        """Ask the listener whether a description fits the image; yes or no."""
        return self.match_template.format(category=category, description=description)

    def recognition(self, category: str, description: str | None) -> str:
        """Ask whether the user's thing is in the image; yes or no."""
        if description is None:
            return self.recognition_bare_template.format(category=category)
        return self.recognition_template.format(category=category, description=description)

    def identification(self, category: str, options: Sequence[str]) -> str:
        """Ask which of the descriptions fits the thing in the image; a letter."""
        return self.identification_template.format(category=category, options=self._render_options(options))

    def vqa(self, category: str, description: str | None, question: str, options: Sequence[str]) -> str:
        """Ask a multiple-choice question about the user's thing; a letter."""
        rendered = self._render_options(options)
        if description is None:
            return self.vqa_bare_template.format(category=category, question=question, options=rendered)
        return self.vqa_template.format(category=category, description=description, question=question, options=rendered)

    def judge_state(self, text: str) -> str:
        """Ask whether a text mentions a transient state or pose; yes or no."""
        return self.judge_state_template.format(text=text)

    def judge_location(self, text: str) -> str:
        """Ask whether a text mentions surroundings; yes or no."""
        return self.judge_location_template.format(text=text)

    def _render_options(self, options: Sequence[str]) -> str:
        """Letter the options in the order given.

        Raises:
            ValueError: If there are no options, or more than letters.
        """
        if not 1 <= len(options) <= len(LETTERS):
            raise ValueError(f"expected 1 to {len(LETTERS)} options, found {len(options)}")
        return self.option_separator.join(
            self.option_template.format(letter=letter, option=option)
            for letter, option in zip(LETTERS, options, strict=False)
        )


CONCISE = PromptSet(
    name="concise",
    speaker_template=(
        "Describe the {category} in the image so that it can be told apart from other {category}s. "
        "Use <thinking>, <coarse> and <detailed>."
    ),
    match_template="Does this description match the image? {description} Answer yes or no.",
    recognition_template=("My {category}: {description} Is my {category} in the image? Answer yes or no."),
    recognition_bare_template="Is my {category} in the image? Answer yes or no.",
    identification_template=(
        "Which description matches the {category} in the image? {options} Answer with the letter."
    ),
    vqa_template="My {category}: {description} {question} {options} Answer with the letter.",
    vqa_bare_template="{question} {options} Answer with the letter.",
    judge_state_template=("Does this text mention the state of the object? {text} Answer yes or no."),
    judge_location_template=("Does this text mention the location of the object? {text} Answer yes or no."),
    option_template="{letter}: {option}",
    option_separator=" ",
)

INSTRUCT = PromptSet(
    name="instruct",
    speaker_template="""\
Describe the {category} in this image so that a reader can tell it apart from other, similar \
{category}s in other photos. Write two descriptions.

1. Coarse: 5 to 6 words, starting with "A photo of a".
2. Detailed: exactly one fluent sentence starting with "The". Name 3 or 4 visible attributes of \
the {category} itself that tell it apart, such as colours, patterns, markings, material, shape or \
distinctive parts.

Write only what stays the same from photo to photo. Leave out the background, the place, and the \
state, pose or action it happens to be in. If it is a person, leave out clothing and accessories. \
Use no lists and no brackets.

Think first about what is unusual about this {category}, then answer in exactly this form:
<thinking>what tells it apart</thinking>
<coarse>the coarse description</coarse>
<detailed>the detailed description</detailed>""",
    match_template="""\
Look at the main subject of the image. Does the following description describe it accurately?

"{description}"

Every attribute named in the description must fit what the image shows. Answer with one word, yes \
or no.""",
    recognition_template="""\
Somebody describes their own {category} like this:

"{description}"

Is this very {category} in the image? Another {category} of the same kind does not count. Compare \
permanent features only: colour, shape, material, pattern, markings, and for people the face. \
Ignore pose, state, clothing and surroundings. Answer with one word, yes or no.""",
    recognition_bare_template="Is there a {category} in the image? Answer with one word, yes or no.",
    identification_template="""\
The image shows a {category}. One of the following descriptions was written about the same \
{category}, from another photo of it:

{options}

Compare permanent features only: colour, shape, material, pattern, markings, and for people the \
face. Ignore pose, state and surroundings. Which description fits best? Answer with its letter \
only.""",
    vqa_template="""\
Somebody describes their own {category} like this:

"{description}"

Question about this {category}: {question}

{options}

Answer with the letter of the right option only.""",
    vqa_bare_template="""\
Question: {question}

{options}

Answer with the letter of the right option only.""",
    judge_state_template="""\
Text: "{text}"

Does the text mention a transient state of its subject, that is a pose, an action or a passing \
condition that another photo need not show? Permanent looks do not count. Answer with one word, \
yes or no.""",
    judge_location_template="""\
Text: "{text}"

Does the text mention where its subject is, that is the place, the background or things around it? \
Parts of the subject do not count. Answer with one word, yes or no.""",
    option_template="{letter}: {option}",
    option_separator="\n",
)

PROMPT_SETS: Mapping[str, PromptSet] = {prompts.name: prompts for prompts in (CONCISE, INSTRUCT)}


def prompt_set(name: str) -> PromptSet:
    """Return the prompt set of that name.

    Raises:
        ConfigError: If there is none; the message lists those that exist.
    """
    if name not in PROMPT_SETS:
        raise ConfigError(f"unknown prompt set {name!r}; expected one of {sorted(PROMPT_SETS)}")
    return PROMPT_SETS[name]
