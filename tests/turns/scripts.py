"""What is said in the labelled set: two halves that share no sentence.

    |      the person pauses and the sentence is not complete
    /      the person pauses between two sentences, and has more to say
    {um}   a filler, drawn out at a level pitch
    and~   the last word before a pause, drawn out
    wan-   the last word before a pause, broken off

How the voice moves before a pause or an end is not in the text: it is drawn (`tests.turns.voices`), or what
espeak-ng makes of the comma, the ellipsis, the full stop or the question mark that would be written there.
"""

from __future__ import annotations

from typing import Final, Literal

Half = Literal["tune", "held"]
Language = Literal["en", "de"]
Texts = dict[Language, dict[str, tuple[str, ...]]]

KINDS: Final = (
    "statement",
    "clause",
    "sentences",
    "hesitation",
    "search",
    "list",
    "digits",
    "restart",
    "short",
    "question",
)
DRAWN_COUNTS: Final = dict(zip(KINDS, (34, 38, 32, 54, 28, 24, 24, 14, 40, 32), strict=True))
"""Turns of each kind in a half, 320 in all: 5 % of them are 16. Every eighth is a word or two."""
WRITTEN_COUNTS: Final = {
    "statement": 40,
    "clause": 20,
    "hesitation": 80,
    "list": 50,
    "digits": 50,
    "short": 40,
    "question": 40,
}
"""Of the kinds whose pauses a comma or an ellipsis can stand for."""
LEADS: Final = ("statement", "clause", "sentences")
"""What may be said before a turn of any kind but a short answer, in sentences of their own."""
DRAWN_LEADS: Final = (0.5, 0.25, 0.15, 0.1)
"""How often none to three of them are. Lengths of turns then differ as people's do."""
WRITTEN_LEADS: Final = (1.0,)

TUNE_EN: Final[dict[str, tuple[str, ...]]] = {
    "statement": (
        "I would like to book a table for tonight",
        "my order has not arrived yet",
        "please cancel the second reservation",
        "I forgot the password of my account",
        "the heating in my room is not working",
        "we are going to be four people",
    ),
    "clause": (
        "if it is not too late | I would like to change my order",
        "when I opened the box | the lid was broken",
        "I tried it twice yesterday | but nothing happened",
        "because my train was late | I missed the appointment | and now I need a new one",
        "the blue one is nice | although I prefer the green one",
        "as far as I can tell | the payment went through | but there is no receipt",
    ),
    "sentences": (
        "I ordered a lamp last week / it has not come yet / can you check",
        "we have a dog with us / is that a problem",
        "my name is Miller / I have a reservation for tonight",
        "the screen stays black / I restarted it three times",
        "thanks for the offer / I have to think about it",
        "I am calling about the invoice / there is a mistake in it",
    ),
    "hesitation": (
        "I was wondering {um} | if you have a table by the window",
        "{um} | I think I need a bigger size",
        "could we {uh} | meet a little later",
        "it was on {um} | Tuesday | or maybe Wednesday",
        "I want to change my order and~ | add a bottle of water",
        "the problem is that~ | it only happens in the evening",
        "so~ | I pressed the button and~ | nothing happened",
        "we need {uh} | two rooms | with {um} | a view of the lake",
        "my account number is {um} | I have to look it up",
        "maybe something with {uh} | chicken | or fish",
    ),
    "search": (
        "I am looking for the | restaurant near the old bridge",
        "can you send it to | my office address",
        "I need a pair of | walking boots for my son",
        "it says that the | delivery was refused",
        "we would like to stay until | the end of the week",
    ),
    "list": (
        "I need apples | bread | cheese | and two bottles of milk",
        "it comes in red | green | blue | and yellow",
        "we visited the museum | the castle | and the harbour",
        "please add onions | tomatoes | and some garlic",
    ),
    "digits": (
        "my number is # | # | #",
        "the code is # | #",
        "it is customer number # | # | # | thank you",
    ),
    "restart": (
        "I want to chan- | I would like to cancel my order",
        "can you te- | do you know when it opens",
        "the last ti- | last week it was working fine",
        "we are thr- | no we are four people",
    ),
    "short": ("yes", "no | thanks", "okay then", "that one please", "yes please", "maybe tomorrow"),
    "question": (
        "what time do you open on Sunday?",
        "do you have a vegetarian menu?",
        "is there a table | for six people?",
        "how much would it cost | to change the date?",
        "can I pay by card?",
        "where can I | leave my bicycle?",
    ),
}
# codespell:ignore-begin (German)
TUNE_DE: Final[dict[str, tuple[str, ...]]] = {
    "statement": ("ich möchte einen Tisch für heute Abend", "meine Bestellung ist noch nicht da"),
    "clause": (
        "wenn es noch geht | würde ich gern den Termin ändern",
        "ich habe es zweimal versucht | aber es geht nicht",
    ),
    "sentences": (
        "ich habe eine Lampe bestellt / sie ist kaputt",
        "mein Name ist Müller / ich habe reserviert",
    ),
    "hesitation": (
        "ich wollte fragen {ähm} | ob noch ein Zimmer frei ist",
        "{äh} | ich brauche eine andere Größe",
        "das war am {ähm} | Dienstag glaube ich",
        "ich hätte gern und~ | noch eine Flasche Wasser",
    ),
    "search": ("ich suche das | Restaurant an der Brücke", "schicken Sie es bitte an | meine Büroadresse"),
    "list": ("wir brauchen Äpfel | Brot | Käse | und Milch",),
    "digits": ("meine Nummer ist # | # | #",),
    "restart": ("ich möchte die Bes- | ich möchte alles stornieren",),
    "short": ("ja", "nein | danke", "ja bitte"),
    "question": ("wann machen Sie am Sonntag auf?", "haben Sie | etwas ohne Fleisch?"),
}
# codespell:ignore-end
HELD_EN: Final[dict[str, tuple[str, ...]]] = {
    "statement": (
        "I need a doctor for my daughter",
        "the flight to Lisbon was delayed",
        "my meter shows a strange number",
        "I lost the key to my flat",
        "she wants to move to another class",
        "we moved to a new house in March",
    ),
    "clause": (
        "since the storm on Monday | there is no power in the kitchen",
        "after I paid the bill | another letter arrived",
        "I can come in the morning | unless it is raining",
        "although I called last week | nobody came | so I am calling again",
        "he took the tablets for three days | but he still has a fever",
        "to be honest | I did not read the contract | before I signed it",
    ),
    "sentences": (
        "my passport expires in June / what do I have to do",
        "we landed an hour ago / one suitcase is missing",
        "the nurse told me to call again / my results should be ready",
        "I only used it once / then it started to smoke",
        "that sounds good / I will take the early train",
        "this is about the contract for the gym / I want to end it / I am moving away",
    ),
    "hesitation": (
        "I have had this {um} | pain in my shoulder",
        "{uh} | it started about a week ago",
        "we are travelling to {um} | Portugal | with two children",
        "she is allergic to {uh} | nuts | and {um} | penicillin I think",
        "the electrician said that~ | the whole cable is too old",
        "I would take the morning flight but~ | my sister arrives at noon",
        "well~ | first it was slow and~ | later it stopped",
        "could somebody {um} | have a look at it",
        "let me think {uh} | Thursday would be fine",
        "it makes a noise like {um} | a kettle",
    ),
    "search": (
        "is this the number for the | children's clinic",
        "I want to speak with | someone from the sales team",
        "there is a leak under the | kitchen sink",
        "our gate has changed to | number seventeen",
        "he was born in the | spring of that year",
    ),
    "list": (
        "I speak English | Spanish | Greek | and a little Dutch",
        "the fever came on Friday | Saturday | and again today",
        "he packed shirts | socks | and a warm coat",
        "we want the garage | the cellar | the stairs | and the hall cleaned",
    ),
    "digits": (
        "you can reach me at # | # | #",
        "the booking reference is # | #",
        "our meter reads # | # | # | at the moment",
    ),
    "restart": (
        "my daughter nee- | my son needs a new card",
        "is the fli- | is the train on time",
        "we have alrea- | I have already paid for it",
        "it hurts wh- | mostly it hurts at night",
    ),
    "short": ("correct", "sure | why not", "not today", "the first one", "of course", "never mind"),
    "question": (
        "which platform does it leave from?",
        "should he stay in bed?",
        "could you repeat | the last part?",
        "when will the engineer | be here?",
        "is breakfast included?",
        "who do I have to | ask about this?",
    ),
}
# codespell:ignore-begin (German)
HELD_DE: Final[dict[str, tuple[str, ...]]] = {
    "statement": ("der Flug nach Rom ist verspätet", "ich habe meinen Schlüssel verloren"),
    "clause": (
        "seit dem Gewitter am Montag | ist der Strom weg",
        "nachdem ich bezahlt hatte | kam noch ein Brief",
    ),
    "sentences": (
        "wir sind gerade gelandet / ein Koffer fehlt",
        "es hat nur kurz funktioniert / dann hat es geraucht",
    ),
    "hesitation": (
        "ich habe seit {ähm} | ungefähr einer Woche Schmerzen",
        "{äh} | wir reisen mit zwei Kindern",
        "sie verträgt keine {ähm} | Nüsse | oder Milch",
        "der Techniker sagt dass~ | die Leitung zu alt ist",
    ),
    "search": ("ich möchte mit der | Kinderklinik sprechen", "es tropft unter der | Spüle in der Küche"),
    "list": ("ich spreche Deutsch | Englisch | und etwas Griechisch",),
    "digits": ("Sie erreichen mich unter # | # | #",),
    "restart": ("meine Tochter brau- | mein Sohn braucht eine Karte",),
    "short": ("gern", "nein | heute nicht", "natürlich"),
    "question": ("von welchem Gleis fährt er ab?", "ist das Frühstück | im Preis dabei?"),
}
# codespell:ignore-end

NEW_EN: Final[dict[str, tuple[str, ...]]] = {
    "statement": (
        "I would like to open an account",
        "the washing machine has stopped in the middle",
        "our teacher is ill this week",
        "there was nobody at the counter",
        "I paid for parking by mistake",
        "the tickets were sent to my old address",
        "my contract ends in the autumn",
        "somebody scratched my car last night",
    ),
    "clause": (
        "before I sign anything | I want to see the rates",
        "the card works in shops | but the machine refuses it",
        "while we were away | a pipe burst upstairs",
        "I would take the smaller one | if it has a balcony",
        "as soon as the engine is warm | a light comes on | and it loses power",
        "whenever I log in | it asks for a code | that never comes",
    ),
    "sentences": (
        "I left my umbrella on the bus / it is dark green",
        "our son starts school soon / we still need a form",
        "I have been a member for years / now my card is blocked / why is that",
        "the play begins at eight / we may be a bit late",
        "you sent me two letters / they say different things",
        "the brakes make a noise / I would rather not drive it",
    ),
    "hesitation": (
        "I want to transfer {um} | two thousand to my brother",
        "{um} | the brakes were done in spring",
        "can I bring {uh} | my own projector",
        "it must have been {um} | the week after Easter",
        "we parked behind the~ | old theatre I believe",
        "you told me that~ | someone would ring me back",
        "well {uh} | there were three of us | and {um} | a baby",
        "the form asks for {uh} | some kind of number",
        "so I turned the key and~ | all the lights went off",
        "perhaps {um} | a concert | or the opera",
    ),
    "search": (
        "I am calling because of the | broken window in the gym",
        "my husband left his | reading glasses in the cinema",
        "does this bus go to the | university hospital",
        "we have paid the rent for | April and for May",
        "the man at the desk gave me a | yellow slip of paper",
    ),
    "list": (
        "we play on Mondays | Wednesdays | and every second Sunday",
        "I have a passport | a driving licence | and a birth certificate",
        "the room needs a lamp | a desk | two chairs | and a shelf",
        "bring a helmet | gloves | and warm trousers",
    ),
    "digits": (
        "the number on the card is # | # | # | #",
        "my postcode is # | #",
        "please note down # | # | # | and my name is Baker",
    ),
    "restart": (
        "where do I han- | where do I return the keys",
        "our landlo- | the owner wants to sell the flat",
        "it costs for- | it was cheaper a month ago",
        "he can pi- | she can pick it up herself",
    ),
    "short": (
        "exactly",
        "not really",
        "no idea",
        "that works",
        "probably",
        "fine | do that",
        "on Friday",
        "both",
        "absolutely",
        "half past two",
    ),
    "question": (
        "which form should I fill in?",
        "has the concert | been cancelled?",
        "may I swap the tickets?",
        "how long does the repair | usually take?",
        "do I need | a second signature?",
        "are dogs allowed in there?",
    ),
}
# codespell:ignore-begin (German)
NEW_DE: Final[dict[str, tuple[str, ...]]] = {
    "statement": ("ich möchte ein Konto eröffnen", "die Waschmaschine bleibt immer stehen"),
    "clause": (
        "bevor ich unterschreibe | möchte ich die Preise sehen",
        "während wir im Urlaub waren | ist ein Rohr geplatzt",
    ),
    "sentences": (
        "ich habe meinen Schirm im Bus vergessen / er ist grün",
        "Sie haben mir zwei Briefe geschickt / was gilt denn nun",
    ),
    "hesitation": (
        "ich will {ähm} | meinem Bruder Geld überweisen",
        "{äh} | die Bremsen sind neu",
        "wir standen hinter dem~ | alten Theater glaube ich",
        "das war wohl {ähm} | nach Ostern",
    ),
    "search": (
        "fährt dieser Bus zum | städtischen Krankenhaus",
        "mein Mann sucht seine | Brille aus dem Kino",
    ),
    "list": ("wir brauchen eine Lampe | einen Tisch | und zwei Stühle",),
    "digits": ("meine Postleitzahl ist # | #",),
    "restart": ("wo gebe ich die Schlü- | wo gebe ich den Wagen zurück",),
    "short": ("richtig", "leider nicht", "morgen | vielleicht"),
    "question": ("welches Formular brauche ich?", "wie lange dauert | die Reparatur?"),
}
# codespell:ignore-end

TURNS: Final[dict[Half, Texts]] = {
    "tune": {"en": TUNE_EN, "de": TUNE_DE},
    "held": {"en": HELD_EN, "de": HELD_DE},
}
"""What is said over the agent, and before it."""
TURNS_ALONE: Final[dict[Half, Texts]] = {
    "tune": {
        "en": {kind: TUNE_EN[kind] + HELD_EN[kind] for kind in KINDS},
        "de": {kind: TUNE_DE[kind] + HELD_DE[kind] for kind in KINDS},
    },
    "held": {"en": NEW_EN, "de": NEW_DE},
}
"""What is said while the agent is silent: what judges are tuned on, and measured on. The more to tune on the
better; and what was looked at while tuning tells nothing any more."""
# codespell:ignore-begin (German)
DIGITS: Final[dict[Language, tuple[str, ...]]] = {
    "en": ("oh", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    "de": ("null", "eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun"),
}
FOLLOWING: Final[dict[Language, str]] = {"en": "and then we went on", "de": "und dann ging es weiter"}
"""What would come after a turn whose voice ends as if it went on: it is cut off before it."""

BACKCHANNELS: Final[dict[Half, dict[Language, tuple[str, ...]]]] = {
    "tune": {"en": ("mm hm", "yeah", "right", "okay", "uh huh", "yes"), "de": ("mh", "ja", "genau")},
    "held": {"en": ("mhm", "yep", "sure", "I see", "ah okay", "good"), "de": ("hm hm", "gut", "klar")},
}
SHORT_INTERRUPTIONS: Final[dict[Half, dict[Language, tuple[str, ...]]]] = {
    "tune": {
        "en": ("stop", "wait a moment", "no no that is wrong", "hold on please", "excuse me"),
        "de": ("stopp bitte", "Moment mal", "nein warten Sie"),
    },
    "held": {
        "en": ("stop it", "hang on a second", "no that is not it", "one moment please", "sorry wait"),
        "de": ("halt mal", "einen Augenblick", "nein das stimmt nicht"),
    },
}
# codespell:ignore-end
AGENT: Final[dict[Half, tuple[str, ...]]] = {
    "tune": (
        "Thank you for waiting. Your table is booked for four people at half past seven, by the window on "
        "the first floor. Please let us know if you are late.",
        "I found the order. It left our warehouse on Monday morning and it should arrive tomorrow between "
        "nine and twelve. You will get a message one hour before.",
        "There are three ways to pay. You can use a card, you can transfer the money from your bank, or you "
        "can pay in cash when the parcel is delivered.",
    ),
    "held": (
        "The clinic is open from eight to five. Bring the old reports with you, and please do not eat "
        "anything in the morning. Somebody will call your name.",
        "Your flight leaves from gate seventeen at ten past three. Boarding begins forty minutes earlier. "
        "There is a lounge on the second floor if you like.",
        "I can send an engineer on Thursday afternoon or on Friday before noon. The visit takes about half "
        "an hour, and it costs nothing if the cable is ours.",
    ),
}
