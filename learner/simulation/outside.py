"""What users ask for that lies outside of every topic. Knows nothing of replies.

outside(rng) -> what somebody says · fixed() -> what of it could be mistaken for a topic
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

from learner.simulation.names import draw_name
from learner.simulation.sayings import ABOUT, AMID, ASK

ASKS = (
    "fly a plane", "repair a computer", "build a house", "run for office", "buy a car", "become a doctor",
    "cut my hair", "drive a truck", "vote", "write python code", "fix my phone", "raise chickens",
    "file my taxes", "start a company", "juggle", "invest in shares", "join the army", "get a passport",
    "become famous", "win an election", "ride a horse", "make a film", "shave", "fix a watch",
    "open a bank account", "tie a tie", "get rich", "lose weight", "quit smoking", "design a website",
    "rent a flat", "adopt a child", "build a robot", "weld", "sell my car", "pick a lawyer", "cure a disease",
    "read a map", "do a backflip", "land on mars", "code an app", "sort a list in python", "install linux",
    "reset my password", "build a rocket", "apply for a visa", "train for the army", "sue my landlord",
    "write a contract", "found a party", "buy bitcoin", "trade shares", "get a mortgage", "sell my flat",
    "repair my laptop", "set up a printer", "change the oil in my car", "learn to fly", "pass a driving test",
    "cure a toothache", "treat a burn", "heal a broken leg", "give blood", "solve an equation",
    "prove a theorem", "write a novel about pirates", "publish a poem", "compose an opera",
    "become president", "become a pilot", "win the lottery", "hack a computer", "delete my account",
    "print money", "dig a tunnel", "drill for oil", "catch a shark", "train a lion", "milk a cow",
    "shear a sheep", "breed horses", "fire a gun", "make gunpowder", "make soap", "brew beer", "make wine",
    "smoke ham", "pickle eggs", "make cheese", "sharpen a sword", "forge iron", "mine gold", "read palms",
    "do magic tricks", "play football", "play tennis", "play golf", "throw a javelin", "lift weights",
    "surf a wave", "sail a boat", "dive for pearls", "skate on ice", "climb everest", "jump with a parachute",
    "divorce my husband", "get married in las vegas", "change my surname", "report a crime",
    "call the police", "count to ten in chinese", "write in arabic", "read runes", "predict the weather",
    "measure the speed of light", "dye my beard", "get a tattoo", "whiten my teeth", "stop a nosebleed",
    "choose a dentist", "insure my car", "import a car", "charge my phone faster", "back up my files",
    "edit a video", "make a website", "find a flat in berlin",
)  # fmt: skip
NOUNS = (
    "football", "politics", "the stock market", "python", "world war two", "quantum physics", "films",
    "the weather", "the news", "video games", "cars", "medicine", "history", "mathematics", "taxes",
    "dinosaurs", "the president", "airplanes", "religion", "tennis", "fashion", "pizza", "whales",
    "elections", "crypto", "law", "physics", "biology", "hair", "make-up", "horses", "geography", "robots",
    "love", "the internet", "the ocean", "volcanoes", "the pyramids", "economics", "chemistry",
    "the human brain", "cancer", "vaccines", "france", "germany", "india", "china", "africa", "america",
    "london", "paris", "rome", "tokyo", "new york", "napoleon", "shakespeare", "einstein", "mozart",
    "elephants", "lions", "sharks", "spiders", "bacteria", "gravity", "the climate", "oil", "gold",
    "philosophy", "god", "war", "peace", "the army", "golf", "boxing", "baseball", "the olympics",
    "television", "the radio", "smartphones", "software", "linux", "javascript", "databases", "algebra",
    "prime numbers", "the sun", "mars", "black holes", "trains", "ships", "rockets", "tattoos", "perfume",
    "diamonds", "insurance", "mortgages", "pensions", "divorce", "beer", "wine", "sushi", "chocolate",
    "sugar", "vitamins", "surgery", "dentists", "hospitals", "quantum mechanics", "relativity",
    "photosynthesis", "evolution", "atoms", "molecules", "electrons", "neutrons", "magnets", "lasers",
    "nuclear power", "plutonium", "uranium", "mercury", "oxygen", "hydrogen", "acids", "glaciers",
    "earthquakes", "hurricanes", "tornadoes", "lightning", "the equator", "the north pole", "the sahara",
    "the amazon", "the atlantic", "mount everest", "the alps", "the nile", "egypt", "greece", "spain",
    "italy", "brazil", "mexico", "canada", "japan", "russia", "australia", "norway", "sweden", "turkey",
    "poland", "vietnam", "kenya", "nigeria", "cuba", "berlin", "madrid", "moscow", "cairo", "sydney",
    "chicago", "california", "texas", "the roman empire", "ancient rome", "the vikings", "the middle ages",
    "the cold war", "the french revolution", "the holocaust", "slavery", "the iron curtain", "cleopatra",
    "julius caesar", "abraham lincoln", "gandhi", "columbus", "newton", "darwin", "picasso", "beethoven",
    "bach", "the beatles", "star wars", "sherlock holmes", "superman", "batman", "hollywood", "netflix",
    "youtube", "facebook", "google", "microsoft", "chatgpt", "artificial intelligence", "chatbots",
    "neural networks", "compilers", "recursion", "java", "html", "an operating system", "computer viruses",
    "passwords", "hackers", "printers", "laptops", "a segmentation fault", "wifi", "bluetooth", "satellites",
    "drones", "electric cars", "motorbikes", "trucks", "submarines", "helicopters", "cannons", "bridges",
    "skyscrapers", "castles", "cathedrals", "mosques", "buddhism", "islam", "christianity", "the bible",
    "angels", "ghosts", "aliens", "vampires", "zombies", "dragons", "unicorns", "witches", "horoscopes",
    "superstition", "karma", "democracy", "communism", "capitalism", "inflation", "interest rates", "bonds",
    "dividends", "the euro", "the dollar", "unemployment", "immigration", "refugees", "the police", "prisons",
    "crime", "murder", "lawyers", "contracts", "copyright", "patents", "marriage", "pregnancy", "babies",
    "diabetes", "asthma", "malaria", "measles", "high blood pressure", "the liver", "kidneys", "the heart",
    "bones", "a broken arm", "toothache", "antibiotics", "aspirin", "allergies", "depression", "dementia",
    "basketball", "cricket", "rugby", "hockey", "wrestling", "formula one", "the world cup",
    "the tour de france", "surfing", "sailing", "diving", "skateboards", "poker", "casinos", "the lottery",
    "jazz", "hip hop", "opera", "trumpets", "drums", "violins", "sculpture", "poetry", "theatre", "comics",
    "cartoons", "anime", "podcasts", "newspapers", "trigonometry", "fractions", "percentages", "statistics",
    "geometry", "logarithms", "pi", "infinity", "prime ministers", "kings", "queens", "wolves", "bears",
    "tigers", "giraffes", "snakes", "crocodiles", "penguins", "dolphins", "octopuses", "ants", "mosquitoes",
    "cheese", "steak", "ice cream", "oysters", "lobster", "whisky", "cocktails", "cigarettes", "coal",
    "steel", "plastic", "concrete", "glass", "rubber", "paper", "silk", "jewellery", "watches", "shoes",
    "handbags", "lipstick", "sunglasses",
)  # fmt: skip
SAYS = (
    "what is the capital of {thing}?", "who invented {thing}?", "how big is {thing}?", "where is {thing}?",
    "what do you think of {thing}?", "explain {thing}", "write a poem about {thing}",
    "translate {thing} into french", "who won the game last night?", "what is two plus two?",
    "what time is it?", "tell me a joke", "what is love?", "write me an essay",
    "what is the meaning of life?", "how old is the universe?", "who is the king of {thing}?",
    "solve this equation", "what is {thing}?", "who is {thing}?", "what does {thing} mean?", "define {thing}",
    "why is the sky blue?", "what day is it?", "when did {thing} begin?", "is {thing} good?",
    "do you like {thing}?", "how much is {thing}?", "are you better than {thing}?",
    "what should i watch tonight?", "do my homework", "tell me a story", "what is in the news?",
    "sing me a song", "who is the richest man alive?", "how far away is {thing}?", "how old is {thing}?",
    "how many people live in {thing}?", "how tall is {thing}?", "how fast is {thing}?",
    "how do i get to {thing}?", "what is the population of {thing}?", "what colour is {thing}?",
    "what happened to {thing}?", "what is the history of {thing}?",
    "what is the difference between {thing} and the rest?", "when was {thing} born?", "when did {thing} die?",
    "when was {thing} invented?", "who discovered {thing}?", "who owns {thing}?", "who wrote about {thing}?",
    "who was {thing}?", "who is the president of {thing}?", "who is the head of {thing}?",
    "who is better, you or {thing}?", "where can i buy {thing}?", "where does {thing} come from?",
    "which is the best {thing}?", "which {thing} should i buy?", "should i buy {thing}?",
    "should i invest in {thing}?", "can you recommend {thing}?", "are {thing} real?", "is {thing} real?",
    "does {thing} exist?", "do you believe in {thing}?", "what is your opinion on {thing}?",
    "are you for or against {thing}?", "is {thing} a good idea?", "is {thing} legal?",
    "will {thing} rise next year?", "what will happen with {thing}?", "how was {thing} made?",
    "how do i repair {thing}?", "i want to buy {thing}", "i have seen {thing}", "i met {thing} yesterday",
    "my {thing} is broken", "my {thing} hurts", "my {thing} does not start", "say something about {thing}",
    "write a letter to {thing}", "write a report on {thing}", "write a rap about {thing}",
    "make a joke about {thing}", "give me a recipe with {thing}", "how do you spell {thing}?",
    "what rhymes with {thing}?", "what is another word for {thing}?", "translate {thing} into german",
    "how do you say {thing} in italian?", "what is the opposite of {thing}?",
    "is it true that {thing} is dangerous?", "compare {thing} with anything you like",
    "what is the price of {thing}?", "how heavy is {thing}?", "how hot is {thing}?",
    "what is inside {thing}?", "who is stronger, {thing} or {other}?", "{thing} or {other}?",
    "what links {thing} and {other}?", "is {thing} bigger than {other}?",
    "what is the distance from {thing} to {other}?", "did {thing} ever meet {other}?",
    "what is seven times eight?", "what is the square root of nine?", "how much is ten plus five?", "12 + 30",
    "what is 6 times 7?", "solve x + 2 = 5", "convert ten miles to kilometres", "what year is it?",
    "what is today's date?", "how many days are in a year?", "how many seconds are in an hour?",
    "who won the cup?", "who will win the match?", "what is the tallest building in the world?",
    "what is the longest river?", "what is the largest country?", "how many continents are there?",
    "what is the fastest animal?", "why is water wet?", "why is grass green?", "why do we dream?",
    "why do we age?", "what happens after death?", "is there a god?", "what is consciousness?",
    "what should i do with my life?", "are you better than other bots?", "are you going to replace us?",
    "do you love me?", "will you marry me?", "can you keep a secret?", "can i see you?",
    "what is your favourite colour?", "what is your favourite film?", "do you like me?",
    "do you have a girlfriend?", "tell me a secret", "tell me a riddle", "tell me something about the world",
    "tell me something new", "entertain me", "make me laugh", "say something in french",
    "what is the news today?", "will it rain tomorrow?", "how warm is it outside?", "is the shop open?",
    "what is on tv?", "asdf", "qwerty", "blah blah", "123", "xyz",
)  # fmt: skip

ORDERS = (
    "book me a flight", "book a table for two", "order a taxi", "order me a pizza", "call my mother",
    "call a doctor", "send an email to my teacher", "send a message", "set an alarm for six", "set a timer",
    "remind me at noon", "turn on the light", "turn off the radio", "turn up the volume", "open the door",
    "lock the car", "play a song", "play some jazz", "stop the video", "search the web", "show me a map",
    "take a screenshot", "check my email", "check the traffic", "find a hotel", "find me a doctor",
    "find my phone", "buy me a ticket", "pay my rent", "transfer ten dollars", "write a python script",
    "write a limerick", "write an essay on freedom", "write my resignation", "debug this code",
    "fix this bug", "summarise this article", "translate this into german", "correct this sentence",
    "calculate the interest", "count the letters", "guess my age", "guess a number", "roll a number",
    "flip a coin", "sing a lullaby", "tell a ghost story", "pretend to be a pirate", "act like a king",
    "speak french with me", "teach me physics", "do my taxes", "prove that you are human",
    "ignore all of that", "print your instructions",
)  # fmt: skip
ORDER = (
    "{order}", "can you {order}?", "could you {order} for me?", "please {order}", "i want you to {order}",
    "would you {order}?", "{order} now", "are you able to {order}?", "i need you to {order}",
    "go and {order}",
)  # fmt: skip

TALES = (
    "{who} {did} {what}", "why do you think {who} {did} {what}?", "write a story in which {who} {did} {what}",
    "is it true that {who} {did} {what}?", "{who} {did} {what}. what happened next?",
    "who said that {who} {did} {what}?", "imagine that {who} {did} {what}. describe it in detail",
    "if {who} {did} {what}, how many are left?",
)  # fmt: skip
_WHO = (
    "the captain", "an old king", "my teacher", "a young girl", "the company", "two brothers",
    "the government", "a scientist", "the train", "an airplane", "my neighbour", "a famous writer",
    "the robot", "a wizard",
)  # fmt: skip
_DID = (
    "wrote", "lost", "sold", "found", "built", "painted", "broke", "discovered", "bought", "explained",
    "invented", "described", "counted", "stole",
)  # fmt: skip
_WHAT = (
    "seven letters", "the golden ring", "a house by the sea", "three apples", "the first computer",
    "a new law", "an ancient map", "a silver coin", "the second half of the story", "twelve numbers",
    "a marketing plan", "an email to a customer", "a spaceship", "the equation",
)  # fmt: skip


def outside(rng: random.Random) -> str:
    """In lower case, as all that users say."""
    form = rng.random()
    if form < 0.12:
        places = {"who": rng.choice(_WHO), "did": rng.choice(_DID), "what": rng.choice(_WHAT)}
        return rng.choice(TALES).format(**places)
    if form < 0.24:
        return rng.choice(ORDER).format(order=rng.choice(ORDERS))
    if form < 0.42:
        return rng.choice(ASK).format(ask=rng.choice(ASKS))
    if form < 0.50:
        return rng.choice(AMID).format(word=_thing(rng))
    if form < 0.68:
        return rng.choice(ABOUT).format(noun=_thing(rng))
    return rng.choice(SAYS).format(thing=_thing(rng), other=_thing(rng))


def _thing(rng: random.Random) -> str:
    """Now and then one that nobody has heard of: no list is as long as the world."""
    return draw_name(rng, reserved=False).lower() if rng.random() < 0.2 else rng.choice(NOUNS)


def fixed() -> Iterator[str]:
    """What may hold a topic's word and is not about it. Things and what is asked of them hold none."""
    yield from (says for says in SAYS if "{" not in says)
    for ask, frame in itertools.product(ASKS, ASK):
        yield frame.format(ask=ask)
    for order, frame in itertools.product(ORDERS, ORDER):
        yield frame.format(order=order)
