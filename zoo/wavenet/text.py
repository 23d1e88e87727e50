"""The text of the card: heading and text of each section, with places for what `evaluate.py` measures."""

SECTIONS = (
    (
        "Model",
        """
Twice eight layers with dilations 1, 2, ... 128 (a receptive field of 511 samples, 64 ms), kernel 2, gated activations,
32 residual and 64 skip channels; a code is embedded, and the logits of the next come from two 1x1 convolutions behind
the sum of all skips (van den Oord et al. 2016, arXiv:1609.03499). {size:.0f} kB as ONNX (opset 17).

- Input `codes`, int64 (1, T): mu-law codes 0..255 of speech at 8 kHz, each before the one that is predicted; 128 first.
- Output `logits`, float32 (1, 256, T): those at t tell of the code behind t.

`mel.onnx` is the same network with an input `mel`, float32 (1, 24, T): log-mel frames of the sound that is spoken, a
frame for 80 samples, repeated for each of them, through a 1x1 convolution into every layer. `lstm.onnx` is the LSTM of
the comparison, of 128 units over the same embedding.
""",
    ),
    (
        "Figures",
        """
{prompts} test prompts, {samples:,} samples, in float32 with onnxruntime:

{table}

The three networks were trained alike: the same number of segments, drawn alike, with the same learning rates. The
LSTM's seconds are its own; all trained at once on a machine shared with other work, so seconds do not compare.

Compiled by dlc for the processor, on the embedded excerpt (24 middle seconds of test prompts): {fp32:.4f} bits a sample
in float32 (onnxruntime {onnx:.4f}) and {int8:.4f} in int8, which is more by {loss}.
""",
    ),
    (
        "Generation",
        """
`dlc zoo sample wavenet --out speech.wav` makes the generation from the model's weights as one ONNX Loop, whose delay
lines are replaced row by row, and compiles it to native code. On one core of a machine shared with other work (median
of five): {alone.samples:,.0f} samples a second, {alone.times:.1f} times real time; conditioned on mel frames
{mel.samples:,.0f}, {mel.times:.1f} times real time.

![Spectrograms](spectrograms.png)

0 to 4 kHz, 5 ms a column. Above the test prompt `{pictured}` as it was recorded; in the middle as the conditioned model
speaks it from its mel frames; below what the unconditioned model says by itself.
""",
    ),
    (
        "What is missing",
        """
- The training is short: {seen:,} samples were predicted, where the training part has {there:,}; `--epochs` trains
  longer.
- Without conditioning the model has the sound of a voice for some milliseconds at a time and no words. From mel frames
  it is a vocoder; no part of this family turns text into mel frames.
- The mel frames are of 32 ms, centred on what is predicted, so they tell something of the samples to come: the bits of
  the conditioned model do not compare with those of the others as predictions, only as descriptions.
- One speaker, telephone quality, 8-bit mu-law.
""",
    ),
    (
        "Training",
        """
{notes[epochs]} epochs of {notes[steps]} steps of {notes[batch]} segments of {notes[length]} samples, Adam with a
one-cycle learning rate (peak {notes[peak_rate]}), gradients of norm 1 at most, seed {notes[seed]}. It took
{notes[seconds]:.0f} s with {notes[threads]} thread at low priority (torch {notes[torch]}, a machine shared with other
work). The validation part was at {notes[held_out]:.3f} bits a sample in the end.
""",
    ),
    (
        "Reproduce",
        """
    pip install 'dlc[zoo,bench]'
    dlc zoo fetch wavenet
    dlc zoo train wavenet --out wavenet.onnx
    dlc zoo train wavenet --size mel --out mel.onnx
    dlc zoo train wavenet --size lstm --out lstm.onnx
    dlc zoo eval wavenet --onnx wavenet.onnx --full
    dlc zoo sample wavenet --out speech.wav --count 1
    dlc zoo sample wavenet --out speech.wav --count 1 --prompt vm-tocallnum
    dlc zoo eval wavenet --write-card    # of a clone, once the three files are in their place

Training is deterministic for one machine and one version of torch.
""",
    ),
    (
        "Data and licence",
        """
The English prompts of Asterisk, spoken by Allison Smith, (c) 2003-2010, financed by Digium, Inc., under
CC-BY-SA-3.0, from the Debian package `asterisk-core-sounds-en-wav`: 558 recordings of 24.6 minutes without those of
silence, split by the CRC-32 of their names into training, validation and test parts of about 80, 10 and 10 %.
`test.npz` holds the middle second of 24 test prompts, `calibration.npz` the middle half second of 16 training prompts,
as mu-law codes, under the same licence.
""",
    ),
)
