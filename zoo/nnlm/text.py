"""The prose of the card; `evaluate.py` fills in the figures."""

from __future__ import annotations

SECTIONS = (
    (
        "Model",
        """
A feed-forward network after Bengio et al. (2003): the embeddings of the five words before (64 values each), 128 hidden
units (ReLU), 64 features, and a softmax of two levels, {size:.1f} MB as ONNX (opset 18) in float32, not quantised. The
output layer is one model-local function, `dlc.functions.ClassLogProb`, whose body is in standard operators;
`zoo/nnlm/export.py` describes it and those of the other output layers.

- Input `ngram`, int64 (N, 6): five words of context and the word asked for, by their lines in `zoo/ngram/words.txt`.
- Output `log10`, float32 (N,): log10 of the word's probability after that context.
""",
    ),
    (
        "Output layers and losses",
        """
{table}

Perplexity of the embedded excerpt of the test part (20,000 words; the whole takes a full softmax minutes), of a
vocabulary of 17,905. All rows have the same embeddings and features; a pass is over 800,000 words. Compare rows of
equally many passes.

{missing}

- *full*: a softmax over all words, trained by its likelihood; by *importance sampling* (Bengio and Senécal 2003, 2008;
  500 words a batch drawn by frequency, the word itself being in the sum too); or by *noise-contrastive* estimation
  (Mnih and Teh 2012; the same noise words, scores taken as normalised). The last two save time in training only: at
  test all three need the whole sum.
- *short list*: 2,000 words and one output for all others, which the Kneser-Ney trigram shares out{alone}.
- *two levels*: a softmax over classes, then over the class's words, 32 at most. *binary tree*: a sigmoid a node. Both
  trees come from the word categories that the exchange algorithm learned for the n-gram family (`zoo/nnlm/tree.py`).

Training and test times were taken beside other work, test times with one thread: only their order of magnitude says
something, and a GPU hides what a full softmax costs in training. On one thread of a processor a quarter of a pass took
107 s with two levels, 119 s with the binary tree, 828 s with the full softmax, 150 s by importance sampling and 66 s by
noise-contrastive estimation. Test times are torch's, in batches of 512 words; multiply-adds are exact, the mean over
the excerpt.

On the whole test part, {words:,} words, the committed model, run by onnxruntime, has perplexity {committed:.1f}, the
Kneser-Ney trigram {trigram:.1f}, and their mixture {mixed:.1f} (weight {weight:.2f} for the neural model, found on the
validation part). On the excerpt it has {embedded:.2f}.
""",
    ),
    (
        "Compiled",
        """
{compiled}

The committed model as a package for this machine's CPU on the embedded excerpt; int8 is calibrated with the embedded
validation words. Intervals by the paired bootstrap over blocks of 500 words.
""",
    ),
    (
        "Distillation",
        """
{students}

Perplexity of the test part. The student has embeddings and features of 32 values and 64 hidden units, and the same
softmax of two levels. `dlc zoo distill nnlm` trains it half on the words and half on the cross-entropy with the
committed network's probabilities, of all classes and of the words of the word's own class; `dlc zoo train nnlm --size
student` on the words alone, with the same batches, rates and epochs.
""",
    ),
    (
        "Embeddings",
        """
{neighbours}

By cosine, among the {frequent:,} most frequent words. The picture shows further words in the plane of their two
principal components:

![Words in the plane]({picture})
""",
    ),
    (
        "Training",
        """
{notes[epochs]} epochs of a quarter of a pass each over {notes[words]:,} words, Adam with a one-cycle learning rate
(peak {notes[peak_rate]}), batches of {notes[batch]} windows, dropout, gradients clipped to norm 1, seed {notes[seed]}.
It took {minutes:.0f} minutes with {notes[threads]} thread (torch {notes[torch]}, a machine shared with other work).
Validation perplexity at the end: {notes[held_out]:.1f}.
""",
    ),
    (
        "Reproduce",
        """
    pip install 'dlc[zoo,bench]'
    dlc zoo fetch nnlm
    dlc zoo train nnlm --out nnlm.onnx
    dlc zoo eval nnlm --onnx nnlm.onnx --full
    dlc zoo train nnlm --size full --epochs 4    # a row of the table, of one pass; so for the other sizes
    dlc zoo train nnlm --size student --seed 0    # and further seeds
    dlc zoo distill nnlm --seed 0
    dlc zoo eval nnlm --write-card --weights nnlm.safetensors    # of a clone, once nnlm.onnx is in its place

Training is deterministic for one machine and one version of torch; elsewhere rounding differs, and the perplexity a
little. Trainings are kept in the cache, where the card's evaluation finds them.
""",
    ),
    (
        "Data and licence",
        """
The Brown corpus, with the words, the split and the excerpts of the n-gram family: see `zoo/ngram/card.md`. `tree.npz`
holds a category and the number of training occurrences of each word. The weights are under the project's own licence.
""",
    ),
)
