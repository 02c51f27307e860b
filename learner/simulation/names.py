"""Names nobody has heard before, so that only copying can recall them. Knows nothing of dialogues.

    syllables     "Tobika": easy to say, in a few sounds
    like others   "Priyara": pieces of the world's first names in a new order
    word-like     "Stooklerd": sounds as words have them
    letters       "Qvorje": whatever a keyboard gives

A model that copies the first kind alone stumbles over most people's own names.
"""

from __future__ import annotations

import random
import zlib
from collections import defaultdict

_CLUSTERS = ("br", "ch", "cl", "dr", "fr", "gr", "kr", "ph", "pl", "sh", "st", "th", "tr")
_ONSETS = ("", *"bcdfghjklmnprstvwyz" * 3, *_CLUSTERS)
_VOWELS = (*"aeiouaeiouaeiouaeiou", "ai", "au", "ea", "ee", "ia", "ie", "oa", "ou", "y")
_SOUNDS = (*_VOWELS, "oo", "ae", "ei", "eo", "io", "iu", "ua", "ui", "ou")
_CODAS = ("", "", "", *"lmnrstkx", "nd", "ck", "rt", "lla", "nn")
_ENDINGS = (
    "ok an ar er or al el il ol in on un um us is as os it at et nk ng ck sh st ss ll tt rd rk rm rn lk lt mp pt ct ft "
    "nt nd re se ke le me ne pe te ve ge ce de ly ry ty ny ch th ght tch nce rse sp wn by x z b d f g k l m n p r s t"
)
_ENDS = tuple(_ENDINGS.split())
_LETTERS = 3 * "aaabcdeeefghiijklmnooopqrstuuvwxyz" + "äáåçéèíñóöøúüžš"

_FIRST_NAMES = (
    "Anna Maria John Peter Paul Emma Lisa Laura Sarah David Daniel Michael Thomas James Robert Mary Alice Bob "
    "Charlie Eve Julia Sophie Max Ben Tom Sam Alex Chris Nina Eva Leo Lucas Noah Mia Olivia Ella Amy Kate Jane "
    "Jack Harry George Oscar Hugo Omar Ali Fatima Yuki Chen Wei Priya Ravi Ivan Olga Carlos Diego Sofia Pedro "
    "William Elizabeth Margaret Patricia Jennifer Linda Susan Jessica Karen Nancy Brian Kevin Steven Edward "
    "Ryan Jason Justin Scott Brandon Gregory Frank Raymond Patrick Dennis Tyler Aaron Henry Douglas Zachary "
    "Nathan Kyle Walter Ethan Jeremy Keith Roger Terry Sean Austin Jordan Dylan Bruce Willie Gabriel Logan Alan "
    "Juan Wayne Elijah Randy Vincent Mason Philip Johnny Caleb Chloe Grace Hannah Zoe Lily Ava Isabella Charlotte "
    "Amelia Harper Evelyn Abigail Emily Avery Scarlett Victoria Madison Luna Penelope Layla Riley Nora Hazel "
    "Aurora Violet Stella Natalie Leah Savannah Audrey Claire Lucy Paisley Skylar Caroline Genesis Kennedy Maya "
    "Willow Ruby Katherine Allison Clara Piper Rachel Molly Heather Megan Ashley Crystal Tiffany Brittany "
    "Matthias Jürgen Günther Sören Håkon Björk Åsa Lars Ingrid Astrid Freya Magnus Gustav Henrik Mikkel Niels "
    "Søren Aleksander Piotr Katarzyna Agnieszka Krzysztof Wojciech Zofia Tomáš Jiří Věra Zdeněk Andrej Nikolai "
    "Dmitri Svetlana Tatiana Yevgeny Oksana Bogdan Vasile Ioana Mihai Georgios Eleni Dimitris Giulia Matteo "
    "Lorenzo Chiara Francesca Giuseppe Alessandro Beatriz João Tiago Gonçalo Inês Thiago Camila Valentina "
    "Santiago Mateo José Jesús María Íñigo Xavier Jordi Montserrat Rodrigo Esperanza Guillermo Joaquín Ximena "
    "François Chloé Élodie Amélie Benoît Guillaume Mathieu Océane Maëlle Anaïs Siobhan Niamh Aoife Cillian "
    "Declan Rhys Gwen Owen Angus Fiona Mohammed Ahmed Yusuf Ibrahim Khadija Zainab Layth Nasser Hassan Amira "
    "Samira Leila Reza Shirin Dariush Mehmet Ayşe Emre Elif Zeynep Yiğit Noam Shira Avi Tamar Eitan Rivka Arjun "
    "Anjali Deepak Lakshmi Krishna Sanjay Sunita Vikram Pooja Rahul Shreya Aditya Kavya Ishaan Nandini Rajesh "
    "Thandiwe Sipho Nomvula Kwame Ama Kofi Abena Chinedu Ngozi Emeka Ifeoma Tunde Folake Yewande Babatunde "
    "Wanjiru Kamau Otieno Achieng Mwangi Tendai Farai Zanele Hiroshi Sakura Haruto Yui Kenji Aiko Takeshi Naoko "
    "Minjun Jiwoo Seoyeon Hyun Jisoo Xiaoming Zhang Liu Mei Jing Qiang Xin Huang Ying Nguyen Linh Thuy Minh Huong "
    "Somchai Malee Putri Budi Dewi Agus Siti Nurul Maricel Jovelyn Kahu Aroha Mako Moana Leilani Keanu"
)
COMMON = tuple(_FIRST_NAMES.split())
"""First names a stranger may well have: the demo model should not stumble over them."""


def _followers() -> dict[str, list[str]]:
    """What comes after each two letters of a name; "^" is before its first letter, "" after its last."""
    found: dict[str, list[str]] = defaultdict(list)
    for name in COMMON:
        letters = f"^^{name.lower()}"
        for at in range(len(letters) - 2):
            found[letters[at : at + 2]].append(letters[at + 2])
        found[letters[-2:]].append("")
    return dict(found)


_FOLLOWERS = _followers()
_KNOWN = frozenset(name.lower() for name in COMMON)


def syllable_name(rng: random.Random) -> str:
    """Two or three random syllables, such as "tobika"."""
    syllables = [rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(rng.choice((2, 2, 2, 3)))]
    return "".join(syllables) + rng.choice(_CODAS)


def wordlike_name(rng: random.Random) -> str:
    """One or two syllables that close, such as "stooklerd"."""
    closed = [
        rng.choice(_ONSETS) + rng.choice(_SOUNDS) + rng.choice(_ENDS) for _ in range(rng.choice((1, 2, 2)))
    ]
    return "".join(closed) + rng.choice(("", "", *"aeio"))


def likely_name(rng: random.Random) -> str:
    """Three to eleven letters that follow each other somewhere in a first name, such as "priyara"."""
    while True:
        name = "^^"
        while len(name) < 13 and (letter := rng.choice(_FOLLOWERS[name[-2:]])):
            name += letter
        if len(name) >= 5:
            return name[2:]


def letter_name(rng: random.Random) -> str:
    """Three to eight letters, such as "qvorje"."""
    return "".join(rng.choice(_LETTERS) for _ in range(rng.randint(3, 8)))


def is_reserved(name: str) -> bool:
    """A fifth of all made-up names never occurs in training; held-out prompts use only those."""
    return zlib.crc32(name.lower().encode()) % 5 == 0


def draw_name(rng: random.Random, *, reserved: bool) -> str:
    """A made-up name with a capital; a reserved one is no first name that training knows either."""
    kinds = (syllable_name, wordlike_name, likely_name, letter_name)
    kind = rng.choices(kinds, weights=(36, 20, 28, 16))[0]
    while is_reserved(name := kind(rng)) != reserved or (reserved and name in _KNOWN):
        pass
    return name.capitalize()
