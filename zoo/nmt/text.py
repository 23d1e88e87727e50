"""The sections of the card, with the names of figures in braces."""

SECTIONS = (
    (
        "Model",
        """
A bidirectional GRU of 128 units a direction reads the English pieces; a GRU of 256 units writes the French ones and
reads, at each, the mean of the encoder's states weighted by additive attention (Bahdanau, Cho and Bengio 2015,
arXiv:1409.0473). Both languages and the output layer share one embedding of {vocabulary:,} sentencepiece pieces and 128
features. {parameters:,} parameters, {size:.2f} MB as ONNX (opset 17). `plain.onnx` ({plain_size:.2f} MB) is the same
without attention: it reads both directions' last states at each piece instead (Cho et al. 2014, arXiv:1406.1078).

- Input `source`, int64 (1, S): the pieces of a text and 2, which ends it.
- Output `tokens`, int64 (1, {limit}): the pieces of the translation, 2 in all places behind it.
- Output `score`, float32 (1,): its log probability over the length penalty ((5 + length) / 6) ^ {alpha}.
- Output `alignment`, float32 (1, {limit}, S): the share of each source piece at each piece of the translation. Not in
  `plain.onnx`.

One file translates: the encoder, a beam search of width 4 as an ONNX Loop that stops when all hypotheses have ended,
and a Scan that reads the best one backwards. dlc makes native loops of all of them, so the whole search is one call of
the package. A call takes one text; of any length, but it was trained on texts of at most {words} words.
""",
    ),
    (
        "Figures",
        """
{count:,} test texts, float32 with onnxruntime, by sacrebleu {sacrebleu} with its defaults, and 95 % intervals by the
bootstrap over texts:

{systems}

In chrF, attention is above none by {plain_chrf}, and the beam above the greedy search by {beam_chrf}.

BLEU by the length of the English text:

{buckets}

The gain in BLEU says little by itself of where attention helps most, since none starts from less on long texts: there
attention has {times_long:.1f} times its BLEU, on texts of less than {long} words {times_short:.1f} times.

Packages on the {embedded} embedded test texts; {int8_equal} of them are the same in int8 as in float32:

{packages}
""",
    ),
    (
        "Alignment",
        """
![Alignment]({picture})

What the model looks at (across) for each piece that it writes (down): {pictured},
the first embedded text of 9 to 14 words that is translated as in the reference, if there is one.
`dlc zoo sample nmt --prompt TEXT --out picture.svg` draws it for any text.
""",
    ),
    (
        "Translations",
        """
Evenly chosen from the embedded test texts of five words and more:

{shown}
""",
    ),
    (
        "What is missing",
        """
- The training is short, {notes[epochs]} epochs; long translations repeat phrases. Both models had the same time on a
  shared GPU, in which the one without attention made {plain[epochs]} epochs: they compare by time, of one seed each.
- It knows the help of an office suite and little else. Test texts are of the same help; many are built like texts of
  the training part, so the figures say nothing about other English.
- One text a call. Texts of different lengths would need masks in the encoder and in the attention.
- Names of functions and menus that it has not seen come out as something similar, if at all.
- Products of two activations in the attention (the energies and the weighted mean) stay float32 under int8.
""",
    ),
    (
        "Training",
        """
{notes[epochs]} epochs of all {training_pairs:,} pairs but those of more than {limit} pieces, {notes[batch]} a step,
Adam with a one-cycle learning rate (peak {notes[peak_rate]}), label smoothing {notes[smoothing]}, dropout 0.2,
gradients of norm 1 at most, seed {notes[seed]}. It took {notes[seconds]:.0f} s on {trained_on} (torch {notes[torch]}),
beside other work, and had {notes[held_out]:.3f} bits a piece on the validation part in the end; without attention
{plain[epochs]} epochs, {plain[seconds]:.0f} s, {plain[held_out]:.3f} bits.
""",
    ),
    (
        "Reproduce",
        """
    pip install 'dlc[zoo,bench]'
    dlc zoo fetch nmt
    dlc zoo train nmt --device cuda --epochs {notes[epochs]} --out nmt.onnx
    dlc zoo train nmt --device cuda --epochs {plain[epochs]} --size plain --out plain.onnx
    dlc zoo eval nmt --onnx nmt.onnx --full
    dlc zoo sample nmt --prompt "Click the icon to insert a table."
    dlc zoo eval nmt --write-card    # of a clone, once the two files are in their place
""",
    ),
    (
        "Data and licence",
        """
The help of LibreOffice 7.4, (c) its contributors, under MPL-2.0, from the Debian packages `libreoffice-help-en-us` and
`libreoffice-help-fr`: paragraphs that have the same id in both languages, without code and without what is the same in
both. A paragraph of more than {words} words is taken by sentences where both languages have equally many. Each English
text comes once. The part is decided by the CRC-32 of the text's letters in lower case (test 8 %, validation 4 %), so
no test text, nor one that differs from it in digits and marks only, is in the training part. `test.npz` ({embedded}
test pairs, and 64 texts as pieces), `calibration.npz` (64 training texts as pieces) and `pieces.model`, which was made
from the training part, are under the same licence.
""",
    ),
)
