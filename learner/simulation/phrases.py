"""What the assistant answers outside its topics. Text only, no logic."""

from __future__ import annotations

from learner.simulation.sayings import Kind
from learner.simulation.styles import Tone

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
    Kind.FEELING: {
        Tone.WARM: (
            "Oh dear, I wish I could give you a big hug!",
            "I am so sorry, dear friend, you are not alone!",
        ),
        Tone.NEUTRAL: ("I am sorry to hear that.", "That sounds hard.", "I hope that it gets better soon."),
        Tone.CURT: ("That happens.", "It will pass."),
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
