"""The wording of RULER's tasks.

A benchmark is its wording: these instructions, questions and openings of the answer are RULER's
(arXiv 2404.06654, appendix B and ``scripts/data/synthetic/constants.py`` of its repository,
Apache-2.0, Copyright NVIDIA CORPORATION), with the grammar of one needle or several written out.
Different from it: openings have no blank at either end, because chat templates end where the
answer starts, and a misspelt word is corrected.
"""

from __future__ import annotations

NEEDLE = "One of the special magic {kind} for {key} is: {value}."

NIAH_ONE = (
    "A special magic {kind} is hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {kind} afterwards.\n{context}\n"
    "What is the special magic {kind} for {query} mentioned in the provided text?"
)
NIAH_ONE_OPENING = "The special magic {kind} for {query} mentioned in the provided text is"

NIAH_MANY = (
    "Some special magic {kind} are hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {kind} afterwards.\n{context}\n"
    "What are all the special magic {kind} for {query} mentioned in the provided text?"
)
NIAH_MANY_OPENING = "The special magic {kind} for {query} mentioned in the provided text are"

VT = (
    "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
    "{context}\n"
    "Question: Find all variables that are assigned the value {query} in the text above."
)
VT_OPENING = (
    "Answer: According to the chain(s) of variable assignment in the text above, {count} variables "
    "are assigned the value {query}, they are:"
)

CWE = (
    "Below is a numbered list of words. In these words, some appear more often than others. "
    "Memorize the ones that appear most often.\n{context}\n"
    "Question: What are the 10 most common words in the above list?"
)
CWE_OPENING = "Answer: The top 10 words that appear most often in the list are:"

FWE = (
    "Read the following coded text and track the frequency of each coded word. Find the three most "
    "frequently appeared coded words. {context}\n"
    "Question: Do not provide any explanation. Please ignore the dots '....'. What are the three "
    "most frequently appeared words in the above coded text?"
)
FWE_OPENING = (
    "Answer: According to the coded text above, the three most frequently appeared words are:"
)

QA = (
    "Answer the question based on the given documents. Only give me the answer and do not output "
    "any other words.\n\nThe following are given documents.\n\n{context}\n\n"
    "Answer the question based on the given documents. Only give me the answer and do not output "
    "any other words.\n\nQuestion: {query}"
)
QA_OPENING = "Answer:"
QA_DOCUMENT = "Document {number}:\n{document}"
