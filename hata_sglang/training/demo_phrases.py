"""Words and sentence patterns of the generated texts; the three splits share none."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Phrases:
    """Vocabulary of one split.

    Attributes
    ----------
    people, places, things, qualities, seasons : tuple of str
    sentences : tuple of str
        With the fields person, other, place, thing, quality, season, number.
    facts : tuple of (statement, question, answer)
        About a ``{person}`` or a ``{place}``; the answer is a ``{value}`` (a
        number) or a ``{word}``.
    openings : tuple of str
        First line of a chat with a document.
    """

    people: tuple[str, ...]
    places: tuple[str, ...]
    things: tuple[str, ...]
    qualities: tuple[str, ...]
    seasons: tuple[str, ...]
    sentences: tuple[str, ...]
    facts: tuple[tuple[str, str, str], ...]
    openings: tuple[str, ...]


PHRASES = {
    "train": Phrases(
        people=(
            "Marta Lindqvist",
            "Owen Pryce",
            "Helena Duarte",
            "Tomas Brandt",
            "Ruth Adeyemi",
            "Cyril Vane",
            "Ingrid Solberg",
            "Paulo Teixeira",
            "Agnes Whitlock",
            "Dmitri Karev",
            "Salma Rahimi",
            "Edwin Castell",
            "Noor Haddad",
            "Bridget Malone",
            "Jules Perrin",
            "Katya Orlov",
        ),
        places=(
            "the harbour of Velmere",
            "the mill at Stonebeck",
            "the library of Corran",
            "the orchard near Tilling",
            "the observatory on Mount Harrow",
            "the ferry house",
            "the market in Ostrava Lane",
            "the glass works",
            "the old customs office",
            "the railway yard at Denby",
            "the botanical garden",
            "the print shop in Marl Street",
        ),
        things=(
            "lantern",
            "ledger",
            "compass",
            "violin",
            "telescope",
            "copper kettle",
            "map",
            "wooden crate",
            "bicycle",
            "brass bell",
            "painting",
            "rope",
            "clock",
            "wheelbarrow",
            "seed box",
            "typewriter",
            "umbrella",
            "mirror",
        ),
        qualities=(
            "heavy",
            "faded",
            "unusual",
            "carefully made",
            "rather small",
            "expensive",
            "broken",
            "nearly new",
            "forgotten",
            "green",
            "polished",
            "borrowed",
        ),
        seasons=("in early spring", "late in the summer", "one autumn evening", "in the winter"),
        sentences=(
            "{person} walked to {place} {season} and waited there for {other}.",
            "The {thing} was {quality}, and nobody remembered who had brought it.",
            "There were {number} visitors that week, more than anyone had expected.",
            "At {place} the work began before sunrise and ended long after dark.",
            "{person} wrote a letter about the {thing}, but it was never sent.",
            "It rained for {number} days, and the road to {place} was closed.",
            '"I would rather keep the {thing}," said {person}, "even if it is {quality}."',
            "{other} had studied the history of {place} for many years.",
            "When the bell rang, {person} put the {thing} back on the shelf and went home.",
            "Most people agreed that {place} looked its best {season}.",
            "A report of {number} pages described the repairs in detail.",
            "Nobody could explain why the {thing} had been left beside the window.",
            "{person} and {other} argued about the price, then laughed and shook hands.",
            "The children of the village liked to play near {place}.",
            "Because the {thing} was {quality}, it was kept in a room of its own.",
            "{other} counted the coins twice and found {number} of them.",
            "For dinner there was soup, bread, and a little cheese.",
            "Every visitor had to sign the book, which {person} guarded with care.",
        ),
        facts=(
            (
                "The boat that belongs to {person} carries the registration {value}.",
                "What is the registration of the boat of {person}?",
                "The registration of the boat of {person} is {value}.",
            ),
            (
                "{person} was given room {value} on the upper floor.",
                "Which room was {person} given?",
                "{person} was given room {value}.",
            ),
            (
                "The well at {place} is exactly {value} centimetres deep.",
                "How deep is the well at {place}?",
                "The well at {place} is {value} centimetres deep.",
            ),
            (
                "For the anniversary, {person} received a {word} as a present.",
                "What did {person} receive as a present?",
                "{person} received a {word}.",
            ),
            (
                "The invoice for {place} has the number {value}.",
                "What is the number of the invoice for {place}?",
                "The invoice for {place} has the number {value}.",
            ),
            (
                "In the archive, the file of {person} lies under the mark {value}.",
                "Under which mark does the file of {person} lie?",
                "The file of {person} lies under the mark {value}.",
            ),
            (
                "A {word} is buried under the floor of {place}.",
                "What is buried under the floor of {place}?",
                "A {word} is buried under the floor of {place}.",
            ),
            (
                "{person} once paid {value} crowns for a horse.",
                "How many crowns did {person} pay for a horse?",
                "{person} paid {value} crowns for a horse.",
            ),
        ),
        openings=(
            "Please read the following notes. I will ask about them afterwards.",
            "Here is a collection of documents.",
            "Below is a long text. Answer the question that follows it.",
        ),
    ),
    "validation": Phrases(
        people=(
            "Henrik Aalto",
            "Leila Mansour",
            "Patrick Quill",
            "Rosa Benedetti",
            "Viktor Lasko",
            "Miriam Stone",
            "Hugo Lemaire",
            "Sunita Rao",
        ),
        places=(
            "the bakery in Tower Row",
            "the canal lock at Ferris",
            "the school of navigation",
            "the greenhouse by the river",
            "the coach station of Alderby",
            "the chapel ruins",
        ),
        things=(
            "barometer",
            "wicker basket",
            "flute",
            "pocket knife",
            "woollen blanket",
            "globe",
            "inkwell",
            "sledge",
            "music box",
            "shovel",
        ),
        qualities=("scratched", "surprisingly light", "rare", "plain", "yellow", "well used"),
        seasons=("before the first snow", "in the middle of June", "after the fair"),
        sentences=(
            "{person} repaired the {thing} twice before giving up on it.",
            "Only {number} of the letters from {place} ever arrived.",
            "{season}, the path behind {place} is covered with leaves.",
            "{other} insisted that a {quality} {thing} is better than none.",
            "The meeting at {place} lasted {number} minutes and settled nothing.",
            "{person} taught {other} how to read the signs of the weather.",
            "Somebody had left a {thing} on the stairs, and it was {quality}.",
            "The road bends at {place}, where carts used to turn over.",
            "{other} never spoke of the years spent at {place}.",
            "With a sigh, {person} closed the window and lit the stove.",
            "It takes {number} steps to cross the yard, as every child there knows.",
        ),
        facts=(
            (
                "The locker that {person} rents has the code {value}.",
                "What is the code of the locker that {person} rents?",
                "The code of the locker of {person} is {value}.",
            ),
            (
                "The new roof of {place} took {value} slates.",
                "How many slates did the new roof of {place} take?",
                "The roof of {place} took {value} slates.",
            ),
            (
                "{person} traded a coat for a {word}.",
                "What did {person} get for a coat?",
                "{person} got a {word}.",
            ),
            (
                "On the survey of the county, {place} is point {value}.",
                "Which point of the survey is {place}?",
                "{place} is point {value} of the survey.",
            ),
        ),
        openings=("Go through these papers first.", "The text below is for your reference."),
    ),
    "held_out": Phrases(
        people=(
            "Lucas Fenwick",
            "Amara Okafor",
            "Stefan Wolff",
            "Priya Nair",
            "George Hollis",
            "Yuki Tanabe",
            "Carmen Ibarra",
            "Walter Dunne",
        ),
        places=(
            "the lighthouse at Skerry Point",
            "the town hall of Brisk",
            "the brewery on the hill",
            "the museum of tin toys",
            "the quarry behind Elmswood",
            "the weather station",
        ),
        things=(
            "notebook",
            "silver spoon",
            "drum",
            "saddle",
            "teapot",
            "microscope",
            "tapestry",
            "anchor",
            "chessboard",
            "candlestick",
        ),
        qualities=("dusty", "valuable", "crooked", "ordinary", "blue", "much admired"),
        seasons=("at the end of May", "during the harvest", "on a foggy morning"),
        sentences=(
            "On the way to {place}, {person} lost a {thing} and did not look for it.",
            "The council met {number} times before it came to a decision.",
            "{other} claimed that the {thing} was {quality}, yet few believed it.",
            "From the tower one could see {place} and the fields beyond.",
            "{season}, {person} opened a small shop that sold tea and newspapers.",
            "A {thing} stood in the corner; it looked {quality} in the lamplight.",
            "The train was {number} minutes late, as it usually was.",
            "{person} asked whether {other} would come back to {place} next year.",
            "There is a story about {place} that old people tell at night.",
            "After the speech, {other} thanked the guests and turned off the lights.",
            '"Nothing here is as {quality} as it seems," {person} remarked.',
        ),
        facts=(
            (
                "The parcel addressed to {person} weighs {value} grams.",
                "How much does the parcel for {person} weigh?",
                "The parcel for {person} weighs {value} grams.",
            ),
            (
                "Tickets for {place} are printed on sheet {value}.",
                "On which sheet are the tickets for {place} printed?",
                "The tickets for {place} are printed on sheet {value}.",
            ),
            (
                "{person} keeps a {word} in the attic.",
                "What does {person} keep in the attic?",
                "{person} keeps a {word} in the attic.",
            ),
            (
                "The telephone extension at {place} is {value}.",
                "What is the telephone extension at {place}?",
                "The telephone extension at {place} is {value}.",
            ),
        ),
        openings=("Study this material before you reply.", "I have copied several pages for you."),
    ),
}
