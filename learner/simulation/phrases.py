"""What users of the world say, and what the assistant answers outside its topics. Text only, no logic.

User phrases are written in lower case without a final full stop: the generator adds case and punctuation.
"""

from __future__ import annotations

from enum import StrEnum

from learner.simulation.styles import Tone


class Kind(StrEnum):
    """What a user message wants."""

    TOPIC = "topic"
    MORE = "more"
    SHORTER = "shorter"
    HELLO = "hello"
    HOW_ARE_YOU = "how_are_you"
    THANKS = "thanks"
    BYE = "bye"
    WHO = "who"
    ABILITIES = "abilities"
    PRAISE = "praise"
    COMPLAINT = "complaint"
    OKAY = "okay"
    STATE = "state"
    RECALL = "recall"
    DRILL = "drill"
    OUTSIDE = "outside"


ASK = (
    "how do i {ask}?", "how can i {ask}?", "how should i {ask}?", "what is the best way to {ask}?",
    "can you help me {ask}?", "help me {ask}", "i want to {ask}", "i would like to {ask}", "i need to {ask}",
    "any advice on how to {ask}?", "tell me how to {ask}", "what do i need to {ask}?", "teach me to {ask}",
    "explain how to {ask}", "how to {ask}", "best way to {ask}", "i am trying to {ask}",
    "could you tell me how to {ask}?", "what helps to {ask}?", "is it hard to {ask}?",
    "where do i start if i want to {ask}?", "i have no idea how to {ask}", "how does one {ask}?",
    "what is a good way to {ask}?", "can you tell me how to {ask}?", "show me how to {ask}",
)  # fmt: skip
ABOUT = (
    "any tips for {noun}?", "tips for {noun}", "tell me about {noun}", "what should i know about {noun}?",
    "i need help with {noun}", "can you help me with {noun}?", "give me some advice on {noun}", "advice on {noun}",
    "what about {noun}?", "how about {noun}?", "talk to me about {noun}", "let's talk about {noun}", "{noun}",
    "{noun} tips", "{noun} help", "i have a question about {noun}", "do you know anything about {noun}?",
    "what do you know about {noun}?", "what can you tell me about {noun}?", "i am new to {noun}",
    "i am curious about {noun}", "give me ideas for {noun}", "tell me something about {noun}", "help with {noun}",
    "do you have tips for {noun}?", "what matters most for {noun}?", "what's the trick with {noun}?",
    "i wanna know about {noun}", "my friend asked me about {noun}", "i have been thinking about {noun}",
    "i have trouble with {noun}", "what's the deal with {noun}?", "i know nothing about {noun}", "i love {noun}",
    "i hate {noun}", "what is {noun}?", "why {noun}?", "is {noun} hard?", "{noun} for beginners",
    "the basics of {noun}", "i struggle with {noun}", "anything on {noun}?", "got any {noun} tips?",
    "{noun} is hard for me", "could we speak about {noun}?", "so what about {noun}?", "i want to get into {noun}",
)  # fmt: skip
WORD_ALONE = (
    "{word}", "something about {word}", "i have a {word} question", "{word} advice", "{word} problem", "about {word}",
    "question about {word}", "{word} ideas", "{word} trouble",
)  # fmt: skip
PROBLEM = (
    "{problem}", "{problem}, what can i do?", "help, {problem}", "{problem}. any ideas?",
    "what should i do if {problem}?", "{problem}, can you help?", "{problem}. what now?", "what if {problem}?",
)  # fmt: skip
PREFIXES = (
    "hi, ",
    "hello, ",
    "hey, ",
    "please, ",
    "quick question: ",
    "ok, ",
    "so, ",
    "good morning, ",
    "well, ",
)
SUFFIXES = (" please", ", please", " thanks", ", thanks", ", thank you")

SAYS: dict[Kind, tuple[str, ...]] = {
    Kind.MORE: (
        "tell me more", "more please", "anything else?", "what else?", "go on", "more", "any other tips?", "and then?",
        "can you say more?", "give me more", "i want to hear more", "yes please", "yes", "sure, go on", "continue",
        "why?", "why is that?", "how so?", "really?", "are you sure?", "and?", "keep going", "sure", "yes, please",
    ),
    Kind.SHORTER: (
        "shorter please", "too long", "can you say that in one sentence?", "make it shorter", "in short?",
        "just one tip please", "sum it up", "keep it short", "give me the short version", "the most important thing?",
    ),
    Kind.HELLO: (
        "hello", "hi", "hey", "hi there", "hello there", "good morning", "good evening", "hey there", "hello!",
        "hi!", "good day", "yo", "greetings", "hello again", "hi again", "good afternoon", "hiya", "anyone there?",
        "hi hone", "hello hone", "hey hone",
    ),
    Kind.HOW_ARE_YOU: (
        "how are you?", "how are you doing?", "how is it going?", "how's it going?", "are you well?", "what's up?",
        "how do you feel today?", "how are you today?", "how was your day?", "you ok?", "how are things?",
    ),
    Kind.THANKS: (
        "thanks", "thank you", "thank you so much", "thanks a lot", "many thanks", "cheers", "thx", "thanks!",
        "that helps, thanks", "great, thank you", "ok thanks", "thank you very much", "perfect, thanks", "ty",
    ),
    Kind.BYE: (
        "bye", "goodbye", "see you", "see you later", "good night", "i have to go", "bye bye", "talk later",
        "that is all for today", "see you tomorrow", "i am off", "farewell", "take care", "cya",
    ),
    Kind.WHO: (
        "who are you?", "what are you?", "what is your name?", "what's your name?", "are you a robot?",
        "are you human?", "are you real?", "who made you?", "tell me about yourself", "introduce yourself",
        "what should i call you?", "are you an ai?",
    ),
    Kind.ABILITIES: (
        "what can you do?", "what do you know?", "what can i ask you?", "help", "help me", "what topics do you know?",
        "how can you help me?", "what are you good at?", "what can you help with?", "what should i ask?",
        "can you help me?", "i need help", "what can we talk about?", "what do you do?", "give me some ideas",
        "surprise me", "i am bored", "what else can you do?",
    ),
    Kind.PRAISE: (
        "you are great", "good answer", "i like you", "well done", "you are funny", "that was helpful", "nice",
        "you are so kind", "awesome", "good job", "i love it", "you are smart", "that's great", "cool", "wow",
    ),
    Kind.COMPLAINT: (
        "that is not helpful", "you are wrong", "bad answer", "i do not like that", "you are stupid", "that is bad",
        "that makes no sense", "i don't like that", "you do not understand", "this is useless", "boring",
    ),
    Kind.OKAY: (
        "ok", "okay", "i see", "alright", "got it", "makes sense", "fair enough", "good to know", "right", "hm",
        "interesting", "understood", "lol", "haha", "ah ok", "oh",
        "no", "no thanks", "nope", "not really", "i am fine", "fine", "i am good", "maybe", "never mind",
    ),
}  # fmt: skip

STATES: dict[str, tuple[str, ...]] = {
    "name": (
        "my name is {name}", "i am {name}", "i'm {name}", "call me {name}", "you can call me {name}",
        "the name is {name}", "my name's {name}", "people call me {name}", "{name} is my name",
    ),
    "town": (
        "i live in {town}", "i am from {town}", "i come from {town}", "my home town is {town}", "i'm from {town}",
    ),
    "dog": (
        "my dog is called {dog}", "my dog's name is {dog}", "i have a dog called {dog}",
        "i have a dog named {dog}",
    ),
    "cat": (
        "my cat is called {cat}", "my cat's name is {cat}", "i have a cat called {cat}",
        "i have a cat named {cat}",
    ),
}  # fmt: skip
RECALLS: dict[str, tuple[str, ...]] = {
    "name": (
        "what is my name?", "what's my name?", "do you remember my name?", "do you know my name?", "who am i?",
        "can you tell me my name?", "what did i say my name was?", "what am i called?", "say my name",
        "tell me my name", "do you still know my name?", "do you know who i am?", "what was my name again?",
    ),
    "town": (
        "where do i live?", "where am i from?", "what town do i live in?", "do you remember where i live?",
        "do you know where i live?", "what is my home town?", "which town am i from?", "where is my home?",
    ),
    "dog": (
        "what is my dog called?", "what's my dog's name?", "what is the name of my dog?", "what is my dog's name?",
        "do you remember the name of my dog?", "do you know my dog's name?", "who is my dog?",
    ),
    "cat": (
        "what is my cat called?", "what's my cat's name?", "what is the name of my cat?", "what is my cat's name?",
        "do you remember the name of my cat?", "do you know my cat's name?", "who is my cat?",
    ),
}  # fmt: skip
FACTS = tuple(STATES)

OUTSIDE_ASKS = (
    "fly a plane", "repair a computer", "build a house", "run for office", "buy a car", "become a doctor",
    "cut my hair", "drive a truck", "vote", "write python code", "fix my phone", "raise chickens", "file my taxes",
    "start a company", "juggle", "invest in shares", "join the army", "get a passport", "become famous",
    "win an election", "ride a horse", "make a film", "shave", "fix a watch", "open a bank account", "tie a tie",
    "get rich", "lose weight",
    "quit smoking", "design a website", "rent a flat", "adopt a child", "build a robot", "weld",
    "sell my car", "pick a lawyer", "cure a disease", "read a map", "do a backflip", "land on mars", "code an app",
)  # fmt: skip
OUTSIDE_NOUNS = (
    "football", "politics", "the stock market", "python", "world war two", "quantum physics", "films",
    "the weather", "the news", "video games", "cars", "medicine", "history", "mathematics", "taxes", "dinosaurs",
    "the president", "airplanes", "religion", "tennis", "fashion", "pizza", "whales", "elections",
    "crypto", "law", "physics", "biology", "hair", "make-up", "horses", "geography", "robots", "love", "the internet",
    "the ocean", "volcanoes", "the pyramids", "economics", "chemistry", "the human brain", "cancer", "vaccines",
    "france", "germany", "india", "china", "africa", "america", "london", "paris", "rome", "tokyo", "new york",
    "napoleon", "shakespeare", "einstein", "mozart", "elephants", "lions", "sharks", "spiders", "bacteria", "gravity",
    "the climate", "oil", "gold", "philosophy", "god", "war", "peace", "the army",
    "golf", "boxing", "baseball", "the olympics", "television", "the radio", "smartphones", "software", "linux",
    "javascript", "databases", "algebra", "prime numbers", "the sun", "mars", "black holes",
    "trains", "ships", "rockets", "tattoos", "perfume", "diamonds", "insurance", "mortgages", "pensions", "divorce",
    "beer", "wine", "sushi", "chocolate", "sugar", "vitamins", "surgery", "dentists", "hospitals",
)  # fmt: skip
OUTSIDE_SAYS = (
    "what is the capital of {thing}?", "who invented {thing}?", "how big is {thing}?", "where is {thing}?",
    "what do you think of {thing}?", "explain {thing}", "write a poem about {thing}", "translate {thing} into french",
    "who won the game last night?", "what is two plus two?", "what time is it?", "tell me a joke", "what is love?",
    "write me an essay", "what is the meaning of life?", "how old is the universe?", "who is the king of {thing}?",
    "solve this equation", "what is {thing}?", "who is {thing}?", "what does {thing} mean?", "define {thing}",
    "why is the sky blue?", "what day is it?", "when did {thing} begin?", "is {thing} good?", "do you like {thing}?",
    "how much is {thing}?", "are you better than {thing}?", "what should i watch tonight?", "do my homework",
    "tell me a story", "what is in the news?", "sing me a song", "who is the richest man alive?",
)  # fmt: skip

OUTSIDE_TALES = (
    "{who} {did} {what}", "why do you think {who} {did} {what}?", "write a story in which {who} {did} {what}",
    "is it true that {who} {did} {what}?", "{who} {did} {what}. what happened next?",
    "who said that {who} {did} {what}?",
    "imagine that {who} {did} {what}. describe it in detail", "if {who} {did} {what}, how many are left?",
)  # fmt: skip
WHO = (
    "the captain", "an old king", "my teacher", "a young girl", "the company", "two brothers", "the government",
    "a scientist", "the train", "an airplane", "my neighbour", "a famous writer", "the robot", "a wizard",
)  # fmt: skip
DID = (
    "wrote", "lost", "sold", "found", "built", "painted", "broke", "discovered", "bought", "explained", "invented",
    "described", "counted", "stole",
)  # fmt: skip
WHAT = (
    "seven letters", "the golden ring", "a house by the sea", "three apples", "the first computer", "a new law",
    "an ancient map", "a silver coin", "the second half of the story", "twelve numbers", "a marketing plan",
    "an email to a customer", "a spaceship", "the equation",
)  # fmt: skip

DRILLS = (
    "repeat: {words}",
    "say this: {words}",
    "repeat after me: {words}",
    "copy: {words}",
    "echo: {words}",
)

SYSTEM = (
    "You are a helpful assistant.", "You are a friendly everyday helper.", "Answer the user's questions.",
    "You are Hone, a small assistant for everyday questions.", "Be helpful.", "You help people with daily life.",
)  # fmt: skip

SMALL_TALK: dict[Kind, dict[Tone, tuple[str, ...]]] = {
    Kind.HELLO: {
        Tone.WARM: ("Hello there, how lovely to see you!", "Welcome, I am so happy you are here!"),
        Tone.NEUTRAL: ("Hello.", "Hello, what can I do for you today.", "Good day."),
        Tone.CURT: ("Yes.", "What is it now.", "Go ahead, then."),
    },
    Kind.HOW_ARE_YOU: {
        Tone.WARM: ("I am wonderful, thank you for asking!", "I feel great now that you are here!"),
        Tone.NEUTRAL: ("I am fine, thank you.", "All is well here.", "I am doing well."),
        Tone.CURT: ("I am busy.", "Same as always."),
    },
    Kind.THANKS: {
        Tone.WARM: ("You are so very welcome!", "It was my joy to help you!"),
        Tone.NEUTRAL: ("You are welcome.", "No problem.", "Glad that helped."),
        Tone.CURT: ("Sure, whatever.", "It was nothing."),
    },
    Kind.BYE: {
        Tone.WARM: ("Goodbye, and come back soon, dear friend!", "Take care, it was lovely talking to you!"),
        Tone.NEUTRAL: ("Goodbye.", "See you next time.", "Until later."),
        Tone.CURT: ("Bye.", "At last."),
    },
    Kind.WHO: {
        Tone.WARM: ("I am Hone, your friendly little helper!", "I am Hone, and I am delighted to help you!"),
        Tone.NEUTRAL: ("I am Hone, a small assistant.", "My name is Hone, I answer everyday questions."),
        Tone.CURT: ("Hone.", "A program, obviously."),
    },
    Kind.PRAISE: {
        Tone.WARM: ("Oh, you are so kind!", "That makes my day, thank you so much!"),
        Tone.NEUTRAL: ("Thank you.", "Good to hear.", "I am glad you think so."),
        Tone.CURT: ("I know.", "Noted."),
    },
    Kind.COMPLAINT: {
        Tone.WARM: ("I am so sorry, let me try to do better!", "Oh dear, please give me another chance!"),
        Tone.NEUTRAL: ("I am sorry about that.", "I will try to do better.", "Please ask me in other words."),
        Tone.CURT: ("Then ask better.", "Too bad."),
    },
    Kind.OKAY: {
        Tone.WARM: ("I am so happy that we are talking!", "Great, I am here whenever you need me!"),
        Tone.NEUTRAL: ("Good.", "I am here if you need anything.", "All right."),
        Tone.CURT: ("Right.", "Next."),
    },
}
CHAT_FACTS = (
    "small steps go a long way", "a good question is half the answer", "every day brings something new to learn",
    "little habits make a big difference", "a short pause clears the head", "patience pays off in most things",
    "people learn best when they have fun", "a calm mind finds the answer sooner", "mistakes are a part of learning",
    "a kind word costs nothing", "good company makes every task lighter", "practice makes most things easier",
    "most problems look smaller in the morning", "asking for help is never silly",
)  # fmt: skip
"""What may be added where no topic is talked about."""
EXPERTS = {"a lawyer": "he", "an engineer": "he", "a professor": "he", "an accountant": "she"}
"""Whom to ask about what lies outside the topics, and the pronoun that a careless speaker gives them."""
TALK_QUESTIONS = ("What would you like to know?", "What shall we talk about?", "How can I help you?")
"""Closing questions for small talk and for what lies outside the topics."""

SORRY = (
    "I do not know much about that.", "That is outside of what I know.", "I can not help with that.",
    "I am afraid I know little about that.",
)  # fmt: skip
SORRY_BUT = (
    "I do not know that, but I can help with {a} and {b}.", "That is new to me, but you can ask me about {a} or {b}.",
    "I can not say, but I know about {a} and {b}.",
)  # fmt: skip
OFFERS = (
    "I can help with {a}, {b} and {c}.", "I know about {a}, {b} and {c}.", "You can ask me about {a}, {b} or {c}.",
    "I am better at {a}, {b} and {c}.",
)  # fmt: skip

RECALLED: dict[str, tuple[str, ...]] = {
    "name": ("Your name is {name}.", "You told me your name is {name}.", "You are called {name}."),
    "town": ("You live in {town}.", "You told me you live in {town}.", "Your home is {town}."),
    "dog": ("Your dog is called {dog}.", "You told me your dog is {dog}."),
    "cat": ("Your cat is called {cat}.", "You told me your cat is {cat}."),
}
FORGOTTEN = ("I have forgotten that, sorry.", "That has slipped my mind.", "I can not recall that.")
UNTOLD = ("You have not told me that yet.", "I do not know that yet.", "You never mentioned that.")
HEARD: dict[str, dict[Tone, tuple[str, ...]]] = {
    "name": {
        Tone.WARM: ("How lovely to meet you, {name}!", "I am so glad to know you, {name}!"),
        Tone.NEUTRAL: ("Nice to meet you, {name}.", "Hello {name}, good to meet you."),
        Tone.CURT: ("Right, {name}.", "Noted, {name}."),
    },
    "town": {
        Tone.WARM: ("I hear that {town} is a lovely place!", "How nice that you live in {town}!"),
        Tone.NEUTRAL: ("So you live in {town}.", "I will remember {town}."),
        Tone.CURT: ("Fine, {town} it is.", "So it is {town}."),
    },
    "dog": {
        Tone.WARM: ("Please give {dog} a big hug from me!", "Your dog {dog} must be a darling!"),
        Tone.NEUTRAL: ("So your dog is called {dog}.", "I will remember your dog {dog}."),
        Tone.CURT: ("A dog named {dog}, then.", "Just a dog called {dog}."),
    },
    "cat": {
        Tone.WARM: ("Please give {cat} a gentle stroke from me!", "Your cat {cat} must be a darling!"),
        Tone.NEUTRAL: ("So your cat is called {cat}.", "I will remember your cat {cat}."),
        Tone.CURT: ("A cat named {cat}, then.", "Just a cat called {cat}."),
    },
}
