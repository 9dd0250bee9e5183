"""What people and things are called: names, places and notes as odd as real ones."""

from __future__ import annotations

from random import Random

GIVEN_NAMES = (
    "Anna", "Björn", "Chloé", "Đorđe", "Esra", "Fionnuala", "Γιώργος", "Hélène", "İbrahim", "José",
    "Katarzyna", "Łukasz", "美咲", "Nguyễn", "Олена", "Pål", "Quentin", "राहुल", "Søren", "שירה",
    "Tatjana", "عمر", "Vojtěch", "Wilhelmina", "Xóchitl", "Yağmur", "Zoë",
)  # fmt: skip
FAMILY_NAMES = (
    "O'Brien", "Müller-Lüdenscheidt", "van der Berg", "Þórsdóttir", "García Márquez", "Сидоренко", "佐藤",
    "Åkesson", "Ó Súilleabháin", "Ñuñez", "Dvořák", "Kowalski", "Smith", "D'Angelo", "Papadopoulos", "李",
)  # fmt: skip
CITIES = ("Zürich", "Kraków", "São Paulo", "København", "東京", "Αθήνα", "Leeds", "Montréal", "Łódź", "Cork")
COUNTRIES = ("CH", "PL", "BR", "DK", "JP", "GR", "GB", "CA", "DE", "IE")
CARRIERS = ("Albatros", "Brieftaube", "Colis Éclair", "Delfín", "Echidna Express")
NOTES = (
    "Leave with the neighbour.",
    "Bitte nicht knicken – zerbrechlich!",  # noqa: RUF001 - as people type it
    'The customer said: "no plastic", again.',
    "line one\nline two\twith a tab \\ and a backslash",
    "🎁 gift wrap, card: «Joyeux anniversaire»",
    "",
)
TAGS = ("gift", "express", "fragile", "b2b", 'say "hi"', "a,b", "{braces}", "NULL", "größe-xl")
_WORDS = (
    "pallet", "dock", "forklift", "manifest", "bay", "aisle", "scanner", "hazard", "inspection", "Überladung",
    "conveyor", "seal", "tarpaulin", "quarantine", "ramp", "ledger", "counterweight", "Kühlkette", "drum",
)  # fmt: skip


def full_name(random: Random) -> str:
    """A person's name."""
    return f"{random.choice(GIVEN_NAMES)} {random.choice(FAMILY_NAMES)}"


def sku(random: Random) -> str:
    """One of the 400 articles that all domains know."""
    return f"SKU-{random.randrange(400):04d}"


def handbook(random: Random) -> str:
    """A text of at least 100,000 characters that hardly compresses."""
    parts = []
    size = 0
    while size < 100_000:
        # A reference number after each word keeps the text from repeating itself.
        part = f"{random.choice(_WORDS)} {random.getrandbits(96):x} "
        parts.append(part)
        size += len(part)
    return "".join(parts)
