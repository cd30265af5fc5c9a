"""Words for categories: folder names are codes, prompts need nouns. The only place where they are written down."""

from collections.abc import Mapping

CATEGORY_WORDS: Mapping[str, str] = {
    "all": "object",
    "decoration": "decoration object",
    "retail": "retail object",
    "tro_bag": "trolley bag",
    "veg": "vegetable",
}
"""PerVA's short names, and the one pseudo-category of data sets without categories."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _by_concept(names_by_word: Mapping[str, str]) -> Mapping[str, str]:
    return {name: word for word, names in names_by_word.items() for name in names.split()}


PERVA_CATEGORIES = _words(
    "bag book bottle bowl clothe cup decoration headphone pillow plant plate remote retail telephone tie towel toy "
    "tro_bag tumbler umbrella veg"
)


YOLLAVA_WORDS = _by_concept(
    {
        "person": "ciin denisdang khanhvy oong phuc-map thao thuytien viruss yuheng willinvietnam",
        "building": "chua-thien-mu nha-tho-hanoi nha-tho-hcm thap-but thap-cham",
        "cartoon character": "dug fire marie-cat toodles-galore water",
        "pet animal": "bo butin henry mam mydieu",
        "mug": "pusheen-cup",
        "cup": "cat-cup pig-cup",
        "electronic": "tokyo-keyboard",
        "toy": (
            "shiba-yellow shiba-black shiba-gray shiba-sleep neurips-cup brown-duck yellow-duck duck-banana lamb "
            "elephant dragon"
        ),
    }
)
"""Yo'LLaVA's 40 concepts."""

MYVLM_WORDS = _by_concept(
    {
        "toy": (
            "asian_doll boy_funko_pop chicken_bean_bag dangling_child gengar_toy iverson_funko_pop green_doll "
            "minion_toy rabbit_toy robot_toy sheep_plush sheep_toy small_penguin"
        ),
        "figurine": "bull cat_statue ceramic_head elephant_sphere elephant_statue red_chicken",
        "tea pot": "colorful_teapot",
        "cup": "espresso_cup",
        "household object": "gold_pineapple",
        "dog": "maeve_dog billy_dog",
        "cat": "my_cat",
        "piggy bank": "red_piggy_bank",
        "shoe": "running_shoes",
        "pillow": "sheep_pillow",
        "mug": "skulls_mug",
    }
)
"""MyVLM's 29 released objects."""

DREAMBOOTH_WORDS = _by_concept(
    {
        "backpack": "backpack backpack_dog",
        "stuffed animal": "bear_plushie grey_sloth_plushie wolf_plushie",
        "bowl": "berry_bowl",
        "can": "can",
        "candle": "candle",
        "cat": "cat cat2",
        "clock": "clock",
        "sneaker": "colorful_sneaker shiny_sneaker",
        "dog": "dog dog2 dog3 dog5 dog6 dog7 dog8",
        "toy": "duck_toy monster_toy poop_emoji rc_car robot_toy",
        "boot": "fancy_boot",
        "glasses": "pink_sunglasses",
        "cartoon character": "red_cartoon",
        "teapot": "teapot",
        "vase": "vase",
    }
)
"""DreamBooth's 30 subjects."""


def category_word(
    category: str, name: str, overrides: Mapping[str, str], words: Mapping[str, str] | None = None
) -> str:
    """Word used in prompts for a concept's kind.

    Args:
        category: Folder name of the category.
        name: Folder name of the concept.
        overrides: Words from the settings, by category or by concept id (``category/name``), which goes first.
        words: Words of a known data set, by the concept's name.

    Returns:
        The word; a category without an entry stands for itself, with spaces for underscores.
    """
    for key in (f"{category}/{name}", category):
        if key in overrides:
            return overrides[key]
    if words and name in words:
        return words[name]
    return CATEGORY_WORDS.get(category, category.replace("_", " ").strip())


def word_in_name(name: str) -> str | None:
    """The word behind the last dash of a concept's name, as in ``Alexs hat-hat``."""
    return name.rpartition("-")[2].strip() or None if "-" in name else None
