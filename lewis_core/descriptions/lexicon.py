"""Word lists that find talk of state, of place and of identity in a description. Deterministic, no model.

A state is a pose, an action or a passing condition ("lying on its side", "steaming", "being held"); a location is a
place, a surface or the surroundings ("on the grass", "by a window", "outdoors"); identity is what stays: colours,
patterns, materials, shapes, marks and parts. Fixed names ("running shoe", "open weave") are no states. Word lists
find what is written, not what is meant: rates from them are for comparing speakers, and err on the side of finding.
The pocket world's language is covered exactly.
"""

import re
from functools import lru_cache
from typing import Literal, NamedTuple

Kind = Literal["identity", "state", "location"]


class Span(NamedTuple):
    """A part of a text, ``text[start:end]``, and what it talks about."""

    start: int
    end: int
    kind: Kind


def _any(words: str) -> str:
    """Alternatives from a blank-separated list, longest first; ``_`` stands for a blank."""
    return "|".join(sorted((re.escape(word).replace("_", r"\s+") for word in words.split()), key=len, reverse=True))


COLORS = _any(
    "red orange yellow green blue purple violet pink brown black white grey gray beige cream ivory tan gold "
    "golden silver bronze copper teal turquoise cyan aqua navy maroon burgundy crimson scarlet magenta lavender "
    "lilac mauve olive khaki mint peach coral salmon rust charcoal taupe amber indigo mustard rose multicolored "
    "multicoloured colorful colourful pastel monochrome"
)
SHADES = _any("dark light pale bright deep vivid faded soft neon pastel")
PATTERNS = _any(
    "stripe stripes striped dot dots dotted polka check checks checked checkered chequered plaid tartan zigzag "
    "zigzags chevron floral flowered paisley camouflage camo geometric abstract marbled speckled spotted leopard "
    "zebra gradient ombre plain patterned pattern embroidered embroidery quilted ribbed textured glittery glossy "
    "matte shiny translucent transparent tie-dye herringbone houndstooth argyle swirl swirls mottled brindle "
    "tabby"
)
MATERIALS = _any(
    "plastic metal metallic wood wooden wool woolen woollen leather suede canvas denim cotton linen silk velvet "
    "satin nylon polyester fabric felt fleece fur furry plush knit knitted crochet crocheted ceramic porcelain "
    "clay glass crystal steel stainless aluminum aluminium iron brass stone marble rubber silicone paper "
    "cardboard wicker rattan straw bamboo cork resin fluffy mesh woven"
)
SHAPES = _any(
    "slim wide regular tall short round rounded square rectangular oval cylindrical conical triangular curved "
    "tapered oblong flat narrow spherical hexagonal octagonal heart-shaped star-shaped bulbous slender chunky "
    "shape shaped silhouette oversized miniature"
)
MARKS = _any(
    "logo logos print printed text lettering letters letter writing inscription label brand monogram emblem badge "
    "patch sticker star stars heart hearts moon flower flowers cross triangle ring bolt illustration cartoon "
    "graphic slogan signature engraved engraving symbol scratch crack chip scar freckle mole tattoo"
)
PARTS = _any(
    "handle handles strap straps cap lid brim sole soles base scarf rim spout zipper zip buckle button buttons "
    "pocket pockets collar sleeve sleeves hood lace laces heel toe tongue tassel tassels ribbon bow neck body "
    "stem leaf leaves petal petals ear ears eye eyes nose snout muzzle tail paw paws whiskers beard mustache "
    "moustache hair wheel wheels screen knob lampshade shade trim edge edges border lining stitching seam hem "
    "keychain charm pendant"
)
_IDENTITY = re.compile(
    rf"\b(?:(?:{SHADES})[\s-]+)?(?:{COLORS})\b|\b(?:{PATTERNS}|{MATERIALS}|{SHAPES}|{MARKS}|{PARTS})\b", re.IGNORECASE
)

_STATE_WORDS = _any(
    "empty steaming steamy closed shut open opened unopened clean dusty dirty muddy tied untied unlaced laced-up "
    "dry wet damp soaked dripping awake asleep sleeping sleepy upright tilted tipped leaning leans lying lies lay "
    "laying sitting sits seated standing stands hanging hangs hung resting rests perched perches placed "
    "positioned propped stacked folded unfolded crumpled wrinkled rolled_up curled_up upside_down upside-down "
    "overturned worn_by being held holding held carried grabbed poured pouring filled full_of half-full half- "
    "empty brimming overflowing switched_on switched_off turned_on turned_off lit unlit glowing burning plugged "
    "unplugged charging running walking jumping playing eating drinking looking gazing staring smiling grinning "
    "laughing posing facing stretching yawning swimming flying barking chewing crouching kneeling floating "
    "spinning blooming wilted in_use in_bloom in_motion with_eyes_closed with_its_mouth_open mid-air frozen "
    "melted unzipped zipped unbuttoned buttoned inflated deflated"
)
_STATE = re.compile(
    rf"(?<![\w-])(?:{_STATE_WORDS})(?![\w-])(?:\s+on\s+(?:its|their|his|her)\s+\w+)?"
    r"|(?<=\bis )on\s+its\s+(?:side|back|belly|stomach)\b",
    re.IGNORECASE,
)
_FIXED_NAMES = re.compile(
    r"\b(?:running|walking|hiking|jumping|playing|sleeping|drinking|eating|looking|standing|hanging|folding|swimming|"
    r"flying)\s+(?:shoes?|boots?|sticks?|bags?|glass(?:es)?|cards?|collar|lamps?|loops?|straps?|chairs?|gear|vessel|"
    r"tag|ornaments?|goggles|trunks|disc|saucer)\b"
    r"|\bopen[\s-]+(?:weave|toed?|front|back|knit|work|design|top|face)\b|\bclosed[\s-]+(?:toed?|loop|back)\b"
    r"|\bclean[\s-]+(?:lines?|design|cut|look)\b|\b\w+-looking\b|\b\w+-held\b|\bhand-?held\b|\bfree-?standing\b"
    r"|\bstand-?up\s+collar\b|\blight(?:ly)?\s+lit\b|\bhuman\s+being\b|\bdry[\s-]+erase\b|\bwell[\s-]+being\b",
    re.IGNORECASE,
)

_PLACES = _any(
    "table tabletop desk counter countertop floor ground carpet rug mat grass lawn meadow field garden yard "
    "backyard park forest woods beach sand sea ocean water lake river pool shore snow ice street road sidewalk "
    "pavement pathway path trail driveway parking_lot asphalt concrete bench chair armchair stool sofa couch bed "
    "bedspread blanket sheet towel pillow cushion shelf bookshelf bookcase cabinet drawer closet wardrobe wall "
    "walls window windowsill sill door doorway room kitchen bathroom bedroom office classroom hallway corridor "
    "living_room store shop supermarket cafe café restaurant bar garage car train bus airport station stage "
    "balcony terrace patio deck porch roof rooftop stairs staircase steps fence tree trees bush bushes branch "
    "rock rocks log hill mountain mountains sky sunlight shade sun rain fog night daylight city building "
    "buildings house home background foreground backdrop surface tray plate basket rack hook stand pedestal tiles "
    "tile tablecloth nightstand dresser mantel fireplace sink bathtub oven stove books plants person's_hand hand "
    "hands lap shoulder someone's_hand environment setting scene surroundings interior exhibition museum market "
    "stall plaza square_floor leaves_on_the_ground"
)
_PREPOSITIONS = _any(
    "on in at by near beside next_to close_to under underneath beneath below behind in_front_of against atop "
    "on_top_of inside outside among amid amidst between over above across along around upon onto surrounded_by "
    "set_against alongside within"
)
_DETERMINER = r"(?:an?|the|some|several|various|two|three|many|other|another|someone's|a\s+person's|its|his|her|their)"
_WORD = r"[\w'’-]+"
_LOCATION = re.compile(
    rf"\b(?:{_PREPOSITIONS})\s+(?:{_DETERMINER}\s+)?(?:(?!(?:{_PREPOSITIONS}|and|with|of|is|has)\b){_WORD},?\s+){{0,3}}?"
    rf"(?:{_PLACES})\b(?!\s+of\s+(?:the|its|this|it)\b)(?!\s*[-'’]?\s*shaped)"
    r"|\b(?:outdoors?|indoors?|outside|in\s+nature|background|backdrop|surroundings|sunlit|nearby)\b",
    re.IGNORECASE,
)
_PRINTED_GROUND = re.compile(
    r"\b(?:text|letters?|lettering|prints?|logo|design|patterns?|dots|stripes|flowers|stars|hearts|motifs?|symbols?)"
    rf"(?:\s+[\"'“‘][^\"”]*[\"'”’])?\s+(?:on|against)\s+an?\s+(?:{_WORD}\s+){{0,2}}?(?:background|backdrop|surface)\b"
    r"|\b(?:top|bottom|upper|lower|front|back|outer|inner|outside|inside|side|its|entire|whole)\s+surface\b",
    re.IGNORECASE,
)
_TAG = re.compile(r"<[^<>]*>")


def mentions_state(text: str) -> bool:
    """Tell whether a text mentions a state, pose or action."""
    return any(span.kind == "state" for span in spans(text))


def mentions_location(text: str) -> bool:
    """Tell whether a text mentions a place or surroundings."""
    return any(span.kind == "location" for span in spans(text))


@lru_cache(maxsize=4096)
def spans(text: str) -> tuple[Span, ...]:
    """Find what a text talks about.

    Returns:
        Disjoint parts in the order of the text. Where two kinds overlap, a location wins over a state and a state over
        identity ("on a brick wall" is no material).
    """
    hidden = _mask(text, _TAG)
    found = _find(_mask(hidden, _PRINTED_GROUND), _LOCATION, "location", [])
    found += _find(_mask(hidden, _FIXED_NAMES), _STATE, "state", found)
    found += _find(hidden, _IDENTITY, "identity", found)
    return tuple(sorted(found))


def _mask(text: str, pattern: re.Pattern[str]) -> str:
    """Blank out what a pattern matches, keeping positions."""
    return pattern.sub(lambda match: "\0" * len(match.group()), text)


def _find(text: str, pattern: re.Pattern[str], kind: Kind, taken: list[Span]) -> list[Span]:
    """Find matches that do not overlap with what is taken."""
    found = [Span(match.start(), match.end(), kind) for match in pattern.finditer(text)]
    return [span for span in found if all(span.end <= other.start or other.end <= span.start for other in taken)]
