"""The language that codes form, after "Analyzing The Language of Visual Tokens" (https://arxiv.org/abs/2411.05001).

Knows ids and how they are arranged, nothing about pictures. The paper's full text gives no formulas for most of what it
reports, so the definitions are this package's own; each stands where it is computed, with its count.
"""
