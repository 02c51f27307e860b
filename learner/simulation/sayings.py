"""What users of the world say. Text only, no logic.

In lower case and without a final full stop: the generator adds case and punctuation.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum


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
    FEELING = "feeling"
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
    "what does it take to {ask}?", "how long does it take to {ask}?", "what is the first step to {ask}?",
    "is there a trick to {ask}?", "i never managed to {ask}", "my mother wants to {ask}",
    "when should i {ask}?", "can anyone {ask}?", "how would you {ask}?", "why should i {ask}?",
    "what do people need to {ask}?", "tomorrow i have to {ask}", "we are going to {ask}",
    "i was asked to {ask}", "how much does it cost to {ask}?", "can you explain to me how to {ask}?",
    "where can i find out how to {ask}?", "whats the easiest way to {ask}?", "do you know how to {ask}?",
    "i always wanted to {ask}", "how do people {ask}?", "must i {ask}?",
)  # fmt: skip
ABOUT = (
    "any tips for {noun}?", "tips for {noun}", "tell me about {noun}", "what should i know about {noun}?",
    "i need help with {noun}", "can you help me with {noun}?", "give me some advice on {noun}",
    "advice on {noun}", "what about {noun}?", "how about {noun}?", "talk to me about {noun}",
    "let's talk about {noun}", "{noun}", "{noun} tips", "{noun} help", "i have a question about {noun}",
    "do you know anything about {noun}?", "what do you know about {noun}?",
    "what can you tell me about {noun}?", "i am new to {noun}", "i am curious about {noun}",
    "give me ideas for {noun}", "tell me something about {noun}", "help with {noun}",
    "do you have tips for {noun}?", "what matters most for {noun}?", "what's the trick with {noun}?",
    "i wanna know about {noun}", "my friend asked me about {noun}", "i have been thinking about {noun}",
    "i have trouble with {noun}", "what's the deal with {noun}?", "i know nothing about {noun}",
    "i love {noun}", "i hate {noun}", "what is {noun}?", "why {noun}?", "is {noun} hard?",
    "{noun} for beginners", "the basics of {noun}", "i struggle with {noun}", "anything on {noun}?",
    "got any {noun} tips?", "{noun} is hard for me", "could we speak about {noun}?", "so what about {noun}?",
    "i want to get into {noun}", "can you explain {noun} to me?", "can you tell me more about {noun}?",
    "i would like to know more about {noun}", "what is the point of {noun}?", "is {noun} expensive?",
    "is {noun} dangerous?", "how much time does {noun} take?", "where do i start with {noun}?",
    "my daughter is mad about {noun}", "everybody talks about {noun} these days",
    "i read something about {noun} today", "what do i need for {noun}?", "how does {noun} work?",
    "what is so special about {noun}?", "who can help me with {noun}?",
    "what are common mistakes with {noun}?", "should i care about {noun}?", "do i need {noun}?",
    "what do people say about {noun}?", "explain {noun} simply", "i am afraid of {noun}",
    "we argued about {noun} at dinner", "give me three facts about {noun}", "i just started with {noun}",
    "my son asks me about {noun} all the time", "hmm {noun}", "{noun} and me", "what makes {noun} good?",
    "when is the right time for {noun}?", "is it true what they say about {noun}?",
    "i am writing something about {noun}", "could you give me a hand with {noun}?", "more about {noun}",
    "what would you say about {noun}?", "i dream of {noun}", "{noun} for a beginner?",
    "help me understand {noun}",
)  # fmt: skip
WORD_ALONE = (
    "{word}", "something about {word}", "i have a {word} question", "{word} advice", "{word} problem",
    "about {word}", "question about {word}", "{word} ideas", "{word} trouble", "my {word} again",
    "it is about {word}", "what about {word}?", "any idea about {word}?", "the {word} thing", "i mean {word}",
    "{word} question", "can we talk about {word}?", "how is that with {word}?", "{word}, please",
    "what do you know about {word}?", "is {word} bad?", "i am thinking of {word}", "{word} or not?",
    "too much {word}", "tell me about {word}", "no {word}", "why {word}?", "what is it with {word}?",
    "{word} is not easy for me",
)  # fmt: skip
AMID = (
    "yesterday i had {word} on my mind all day, what would you say?", "how come {word} never works for me?",
    "my neighbour knows everything about {word} and i know nothing", "which {word} would you choose?",
    "is there anything i should know before i start with {word}?", "last time the {word} was a disaster",
    "i never thought that {word} could be so hard, what do i do wrong?", "does {word} matter at all?",
    "a friend told me that {word} changes everything, is that so?", "my {word} is not what it should be",
    "what do most people get wrong about {word}?", "it is my first time with {word}, where do i begin?",
    "i saw something with {word} and now i want to know more", "how much {word} is too much?",
    "so i finally got around to {word} and it went badly", "why is {word} so difficult?",
    "what is your best advice when it comes to {word}?", "there is a problem with the {word} again",
    "we talked about {word} at work and nobody knew the answer", "what happens if i do {word} every day?",
    "can you say something useful about {word} please?", "where can i get help with {word} near me?",
    "i have only ten minutes for {word}, what should i do?", "my wife says {word} is the answer, i am not so sure",
)  # fmt: skip
"""What it is about stands amid other words, for topics and for what lies outside of them alike."""
PROBLEM = (
    "{problem}", "{problem}, what can i do?", "help, {problem}", "{problem}. any ideas?",
    "what should i do if {problem}?", "{problem}, can you help?", "{problem}. what now?",
    "what if {problem}?", "{problem}, why?", "what does it mean when {problem}?",
    "{problem} and i do not know why", "why is it that {problem}?", "{problem} again",
    "since last week {problem}", "my problem is that {problem}", "it is always the same, {problem}",
    "what helps when {problem}?", "i am sorry to bother you but {problem}",
)  # fmt: skip
PREFIXES = (
    "hi, ", "hello, ", "hey, ", "please, ", "quick question: ", "ok, ", "so, ", "good morning, ", "well, ",
    "sorry, ", "wait, ", "hmm, ",
)  # fmt: skip
SUFFIXES = (" please", ", please", " thanks", ", thanks", ", thank you")

SAYS: dict[Kind, tuple[str, ...]] = {
    Kind.MORE: (
        "tell me more", "more please", "anything else?", "what else?", "go on", "more", "any other tips?",
        "and then?", "can you say more?", "give me more", "i want to hear more", "yes please", "yes",
        "sure, go on", "continue", "why?", "why is that?", "how so?", "really?", "are you sure?", "and?",
        "keep going", "sure", "yes, please", "i tried that already", "i did that and it did not help",
        "that did not help", "it still does not work", "i know that already", "that is not enough",
        "that is too hard for me", "i can not do that", "is that all?", "is there more?", "what comes next?",
        "what do i do after that?", "and after that?", "then what?", "next step?",
        "what is the next thing to do?", "how do i begin?", "where should i begin?", "what comes first?",
        "which of these comes first?", "how exactly?", "how do i do that?", "how does that help?",
        "what for?", "why would that help?", "why does that matter?", "says who?", "how do you know that?",
        "does that really work?", "will that work for me?", "is that safe?", "is that enough?",
        "is it worth it?", "how long will it take?", "how often should i do it?", "how many times?",
        "how much of it?", "when exactly?", "what will it cost?", "does it cost much?",
        "do i need anything for it?", "which tools do i need for this?", "what should i buy for it?",
        "what must i not do?", "what should i not do?", "what goes wrong most often?",
        "what do most people get wrong?", "any mistakes to avoid?", "what are the dangers?", "any risks?",
        "an example please", "such as?", "like what?", "could you give an example?", "in other words?",
        "say that again", "can you repeat that?", "i do not get it", "i did not understand that",
        "please explain", "explain that to me", "what does that mean?", "what do you mean by that?",
        "meaning?", "details please", "more details", "a bit more detail please", "a list please",
        "make a list", "as a list please", "step by step please", "three tips please", "give me five tips",
        "one more tip", "another one please", "another tip", "something else please", "any other way?",
        "is there an easier way?", "is there a better way?", "what is your advice?", "what do you suggest?",
        "what is best?", "which one is best?", "what works best?", "what do experts say?",
        "whom can i ask about this?", "who knows more about that?", "does it get easier?",
        "how will i know that it works?", "how can i tell?", "am i doing it right?", "this is my first time",
        "i have never done this before", "i am new to this", "i am not good at it", "ok, and then?",
        "good, what else?", "great, and now?", "that sounds easy", "sounds good, tell me more",
        "i will try that, what else?", "thanks, what else?", "yes, tell me", "tell me everything",
        "what else can i try?", "what else could i do?",
    ),
    Kind.SHORTER: (
        "shorter please", "too long", "can you say that in one sentence?", "make it shorter", "in short?",
        "just one tip please", "sum it up", "keep it short", "give me the short version",
        "the most important thing?", "shorter", "short please", "in a few words", "in a nutshell",
        "only one sentence please", "one sentence please", "a short answer please", "briefly please",
        "can you be brief?", "that is too much text", "less text please", "i have no time to read all that",
        "just the main point", "what is the main point?", "the gist?", "what matters most?",
        "only the best tip", "your best tip?", "if i only do one thing, what should it be?", "cut it down",
        "too many words", "say it briefly", "quick version please", "so what is it in one line?",
    ),
    Kind.HELLO: (
        "hello", "hi", "hey", "hi there", "hello there", "good morning", "good evening", "hey there",
        "hello!", "hi!", "good day", "yo", "greetings", "hello again", "hi again", "good afternoon", "hiya",
        "anyone there?", "hi hone", "hello hone", "hey hone", "good to see you", "hello my friend",
        "knock knock", "is anybody here?", "long time no see", "hallo", "hey you", "hi, it is me again",
        "i am back", "morning", "evening",
    ),
    Kind.HOW_ARE_YOU: (
        "how are you?", "how are you doing?", "how is it going?", "how's it going?", "are you well?",
        "what's up?", "how do you feel today?", "how are you today?", "how was your day?", "you ok?",
        "how are things?", "how have you been?", "are you fine?", "all good?", "everything okay with you?",
        "how is life?", "whats new?", "how is your day going?", "are you happy today?",
    ),
    Kind.THANKS: (
        "thanks", "thank you", "thank you so much", "thanks a lot", "many thanks", "cheers", "thx", "thanks!",
        "that helps, thanks", "great, thank you", "ok thanks", "thank you very much", "perfect, thanks", "ty",
        "thanks for your help", "thank you for the tips", "i appreciate it", "thanks, that was it",
        "much obliged", "thank you, you helped me", "big thanks", "thanks mate", "that helped me a lot",
        "ok thank you",
    ),
    Kind.BYE: (
        "bye", "goodbye", "see you", "see you later", "good night", "i have to go", "bye bye", "talk later",
        "that is all for today", "see you tomorrow", "i am off", "farewell", "take care", "cya",
        "i am leaving now", "until tomorrow", "till next time", "have a nice day", "that was all, bye",
        "i must go now", "good bye for now", "i am done for today", "ok bye", "see you soon", "gotta go",
        "sleep well",
    ),
    Kind.WHO: (
        "who are you?", "what are you?", "what is your name?", "what's your name?", "are you a robot?",
        "are you human?", "are you real?", "who made you?", "tell me about yourself", "introduce yourself",
        "what should i call you?", "are you an ai?", "how old are you?", "where are you from?",
        "where do you live?", "do you have feelings?", "do you have a body?", "are you a machine?",
        "are you a person?", "are you a bot?", "am i talking to a human?", "who is behind you?",
        "who built you?", "who trained you?", "what kind of thing are you?", "are you alive?",
        "can you think?", "do you sleep?", "do you have a name?", "tell me who you are",
        "what are you made of?", "are you a computer?", "do you have a family?", "can i trust you?",
        "are you a man or a woman?", "do you get tired?",
    ),
    Kind.ABILITIES: (
        "what can you do?", "what do you know?", "what can i ask you?", "help", "help me",
        "what topics do you know?", "how can you help me?", "what are you good at?",
        "what can you help with?", "what should i ask?", "can you help me?", "i need help",
        "what can we talk about?", "what do you do?", "give me some ideas", "surprise me", "i am bored",
        "what else can you do?",
    ),
    Kind.PRAISE: (
        "you are great", "good answer", "i like you", "well done", "you are funny", "that was helpful",
        "nice", "you are so kind", "awesome", "good job", "i love it", "you are smart", "that's great",
        "cool", "wow", "you are the best", "what a good answer", "that is clever", "you did well",
        "i like that", "perfect", "very good", "you are helpful", "brilliant", "excellent", "you know a lot",
        "that was a nice answer", "love it", "super",
    ),
    Kind.COMPLAINT: (
        "that is not helpful", "you are wrong", "bad answer", "i do not like that", "you are stupid",
        "that is bad", "that makes no sense", "i don't like that", "you do not understand", "this is useless",
        "boring", "that was not my question", "you did not answer me", "that is nonsense", "wrong",
        "you are no help", "that is not what i asked", "this is not about that", "you repeat yourself",
        "i am disappointed in you", "stop talking nonsense", "that is rude", "you are boring",
        "terrible answer", "i want a human", "you are annoying",
    ),
    Kind.OKAY: (
        "ok", "okay", "i see", "alright", "got it", "makes sense", "fair enough", "good to know", "right",
        "hm", "interesting", "understood", "lol", "haha", "ah ok", "oh", "no", "no thanks", "nope",
        "not really", "i am fine", "fine", "i am good", "maybe", "never mind", "good", "all right",
        "i understand", "we will see", "true", "maybe later", "i think so", "of course", "no problem",
        "i guess so", "i will think about it", "not now", "nothing", "just looking around", "just testing",
        "test", "i am happy", "i had a good day", "life is good", "i feel great", "what a lovely day",
        "good news today",
    ),
    Kind.FEELING: (
        "i feel sad", "i am sad", "i had a bad day", "today was awful", "i feel down", "i am angry",
        "i feel empty", "i am not well", "i do not feel good", "nobody understands me",
        "everything goes wrong", "i am so frustrated", "i want to cry", "i miss my mother",
        "my heart is broken", "she left me", "i am disappointed", "i feel lost", "this was a hard week",
        "i am scared", "nothing makes sense any more", "i feel terrible", "my day was horrible",
        "i am fed up", "i feel ashamed", "i had a fight with my brother", "i am in a bad mood",
        "i failed today", "i hate my life", "i am so unlucky", "i feel ill", "my head hurts",
        "my grandmother died", "i am in pain",
    ),
}  # fmt: skip

MOODS = ("i am {mood}", "i feel {mood}", "i am so {mood}", "i am really {mood}", "i am a bit {mood}",
         "i am {mood} today", "feeling {mood}")  # fmt: skip
"""How one says what one feels, in frames; the words for them:"""
MOOD_WORDS: dict[Kind, tuple[str, ...]] = {
    Kind.FEELING: (
        "nervous", "hungry", "thirsty", "sick", "exhausted", "afraid", "upset", "unhappy", "confused",
        "jealous", "ashamed", "embarrassed", "sleepy", "cold", "homesick", "hopeless", "helpless", "restless",
        "overwhelmed", "annoyed", "grumpy", "heartbroken", "weak", "late", "stuck", "unsure", "shy",
    ),
    Kind.OKAY: ("happy", "excited", "proud", "relaxed", "lucky", "grateful", "cheerful", "hopeful", "ready"),
}  # fmt: skip

FOLLOW_UPS = (
    "what if {snag}?", "and if {snag}?", "but {snag}", "i can't, {snag}", "{snag}. what then?",
    "what can i do if {snag}?", "does it also work when {snag}?", "what if i have no {lack}?",
    "and without {lack}?", "does it take much {lack}?", "i have no {lack} for that", "can {who} do it too?",
    "is that good for {who} too?", "would you tell {who} the same?", "does that also hold for {who}?",
    "what about {when}?", "does it work in {when} as well?", "is it different in {when}?",
    "should i do that in {when}?",
)  # fmt: skip
"""What may be said after any advice, in frames; the words for them, by place:"""
FOLLOW_UP_WORDS = {
    "snag": (
        "it rains", "i am in a hurry", "that fails", "it does not work", "i am alone", "it is too hot",
        "it gets worse", "nothing helps", "i forget it", "it takes too long", "i am too old for that",
        "it costs too much", "i make a mistake", "it breaks", "i give up", "i do not like it",
        "my back does not allow it", "i have small children", "i only have an hour", "i am not at home",
        "it is too late for that", "somebody else does it", "i am allergic", "i lose interest",
    ),
    "lack": (
        "time", "help", "space", "patience", "tools", "experience", "talent", "strength", "room", "car",
        "light", "practice", "energy left", "pump", "scissors", "oven", "ladder", "instructions",
    ),
    "who": (
        "children", "my son", "my grandmother", "old people", "beginners", "my neighbour", "two people",
        "somebody like me", "a small child", "my wife", "my husband", "teenagers", "everyone",
        "a left-handed person", "my flatmate",
    ),
    "when": (
        "winter", "summer", "autumn", "the evening", "the morning", "the rain", "cold weather",
        "a small flat", "the city", "the country", "the weekend", "the holidays", "the dark", "an emergency",
        "hot weather",
    ),
}  # fmt: skip

STATES: dict[str, tuple[str, ...]] = {
    "name": (
        "my name is {name}", "i am {name}", "i'm {name}", "call me {name}", "you can call me {name}",
        "the name is {name}", "my name's {name}", "people call me {name}", "{name} is my name", "im {name}",
    ),
    "town": (
        "i live in {town}", "i am from {town}", "i come from {town}", "my home town is {town}",
        "i'm from {town}",
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
        "what is my name?", "what's my name?", "do you remember my name?", "do you know my name?",
        "who am i?", "can you tell me my name?", "what did i say my name was?", "what am i called?",
        "say my name", "tell me my name", "do you still know my name?", "do you know who i am?",
        "what was my name again?",
    ),
    "town": (
        "where do i live?", "where am i from?", "what town do i live in?", "do you remember where i live?",
        "do you know where i live?", "what is my home town?", "which town am i from?", "where is my home?",
    ),
    "dog": (
        "what is my dog called?", "what's my dog's name?", "what is the name of my dog?",
        "what is my dog's name?", "do you remember the name of my dog?", "do you know my dog's name?",
        "who is my dog?",
    ),
    "cat": (
        "what is my cat called?", "what's my cat's name?", "what is the name of my cat?",
        "what is my cat's name?", "do you remember the name of my cat?", "do you know my cat's name?",
        "who is my cat?",
    ),
}  # fmt: skip
FACTS = tuple(STATES)

DRILLS = (
    "repeat: {words}",
    "say this: {words}",
    "repeat after me: {words}",
    "copy: {words}",
    "echo: {words}",
)

SYSTEM = (
    "You are a helpful assistant.", "You are a friendly everyday helper.", "Answer the user's questions.",
    "You are Hone, a small assistant for everyday questions.", "Be helpful.",
    "You help people with daily life.",
)  # fmt: skip


def follow_ups() -> Iterator[str]:
    """Every frame with every word that fits its place."""
    for frame in FOLLOW_UPS:
        place = next(name for name in FOLLOW_UP_WORDS if f"{{{name}}}" in frame)
        yield from (frame.format(**{place: words}) for words in FOLLOW_UP_WORDS[place])


def moods() -> Iterator[tuple[str, Kind]]:
    """Every frame with every word, and what it says."""
    for kind, words in MOOD_WORDS.items():
        yield from ((frame.format(mood=mood), kind) for frame in MOODS for mood in words)
