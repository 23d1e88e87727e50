"""The prose of the card: headings and texts, whose fields `evaluate` fills in."""

from __future__ import annotations

SECTIONS = (
    (
        "Model",
        """
Three LSTM layers of 128 units in either direction over log-mel frames, three frames at a step, and the logits of 26
letters, the blank between words and CTC's blank (Graves et al. 2006; Graves, Mohamed and Hinton 2013). {size:.1f} MB as
ONNX (opset 17); batch and time are open.

- Input `features`, float32 (batch, time, 120): 40 log-mel bands of 64 to 3,800 Hz at 8 kHz, windows of 25 ms every
  10 ms, with mean 0 and variance 1 in each band of the utterance; 3 frames a step (`features.inputs`).
- Input `lengths`, int32 (batch,): the steps of each utterance. What lies behind them has no influence.
- Output `logits`, float32 (batch, time, 28): `_`, ` `, `a` .. `z`; `_` is CTC's blank.

`student.onnx` has the same inputs and outputs with one layer of 64 units in either direction: {student_size:.1f} MB.
""",
    ),
    (
        "Figures",
        """
The test part has {test_utterances} utterances of {words:,} words by {test_voices} voices. None of its sentences and
none of its voices occurs in training, but its words and the grammar do. In brackets 95 % bootstrap intervals over
utterances; float32, onnxruntime. The character model is a Kneser-Ney smoothed 8-gram of the training transcripts; its
weight in the search was chosen on the validation part.

{table_test}

Words wrong by synthesiser and by signal-to-noise ratio:

{conditions}

Compiled by dlc for the processor, best path on the same part: {fp32:.2%} in float32, {int8:.2%} in int8.

Some of the utterances that are not heard alike:

{examples}
""",
    ),
    (
        "Real recordings",
        """
Prompts of Asterisk, spoken by a woman for the telephone, whose file names say what is spoken: {isolated_words} words of
the vocabulary one by one, and {joined_words} words in 100 sentences joined from them, as Asterisk does. They get short
pauses with faint noise (35 dB) at either end, as the utterances of the training have. No system was
trained or tuned on a real recording, and the synthesisers sound different: this is a shift of domain, and no measure of
how well it would hear people.

One by one:

{table_isolated}

Joined:

{table_joined}

The language models learned sentences like those of the test part; single words are rare in them, and dates and
times are said otherwise than Asterisk says them ("monday october third"). Where about as many words are wrong as there
are, such speech is not recognised at all.
""",
    ),
    (
        "Baseline",
        """
A chain of states for every word (1.5 states a letter) and one of silence, a mixture of up to 8 diagonal Gaussians a
state, on 13 cepstral coefficients of the same frames with first and second differences, normalised over the utterance.
Training knows the transcripts alone: utterances are cut evenly at first, then hmmlearn's Baum-Welch (two
iterations a word) and Viterbi's search for where the words are take turns, four rounds with 1, 2, 4 and 8 components.
It decodes by Viterbi with a Kneser-Ney bigram of the training transcripts, whose weight was chosen on the validation
part. {hmm_seconds:.0f} s of processor time, training included; it saw the utterances as they are, the network
augmented ones.
""",
    ),
    (
        "Distillation",
        """
`dlc zoo distill asr` trains the student half on CTC and half on the divergence from the teacher's probabilities at
every step; `dlc zoo train asr --size student` trains it on CTC alone, with the same batches, rates and epochs.
Characters wrong on the test part, best path, after {student_notes[epochs]} epochs:

{students}

The interval is over utterances, the errors of all seeds added up.

Trained to the end, the teacher brings the student nothing. It only gets there sooner: after 10 epochs 42.38 % of the
characters were wrong with the teacher and 47.26 % without (two seeds; fewer by 4.2 to 5.5 points). Two reasons are
likely. The transcripts are exact, so the teacher has nothing to say about them that CTC does not; and what limits the
student is its size, not what it is told: by itself it is left with 1.0 nats a character on what it was trained on,
where the teacher has 0.1.
""",
    ),
    (
        "Training",
        """
{notes[epochs]} epochs over {utterances:,} utterances ({hours:.2f} hours, {voices} voices), batches of {notes[batch]},
Adam with a one-cycle learning rate (peak {notes[peak_rate]}), gradients of norm 1 at most, dropout 0.1, seed
{notes[seed]}. Every time an utterance is drawn, its tempo (0.85 to 1.15), its vocal tract (0.9 to 1.12), noise and gaps
in time and frequency are drawn anew, all on its frames. It took {notes[seconds]:.0f} s on {trained_on} (torch
{notes[torch]}, shared with other work). CTC's loss on the validation part was {notes[held_out]:.3f} nats
a character in the end. The committed student: {student_notes[epochs]} epochs, {student_notes[seconds]:.0f} s on
{student_on}, {student_notes[held_out]:.3f} nats.
""",
    ),
    (
        "What is missing",
        """
- A closed vocabulary of 137 words and one small grammar; words outside are spelled as they sound, mostly wrong.
- It has learned its training voices better than speech: CTC's loss was {notes[loss]:.3f} nats a character on augmented
  training utterances and {notes[held_out]:.3f} on the validation part, whose voices are others.
- Synthesised speech. Formant voices of one program are alike, whatever their variant is called, so voices that were
  not heard in training are less new than other people would be.
- The network hears the whole utterance before it answers: no streaming.
- The noise is stationary; there are no echoes, no other speakers and no telephone codecs.
""",
    ),
    (
        "Reproduce",
        """
    pip install 'dlc[zoo,bench]'
    dlc zoo fetch asr
    dlc zoo train asr --out asr.onnx             # add --epochs, --device cuda
    dlc zoo train asr --size student --epochs {student_notes[epochs]} --seed 0     # and further seeds
    dlc zoo distill asr --epochs {student_notes[epochs]} --seed 0 --out student.onnx
    dlc zoo eval asr --onnx asr.onnx --full
    dlc zoo sample asr
    dlc zoo sample asr --prompt "set the timer for ten minutes"
    dlc zoo eval asr --write-card    # of a clone, once both files are in their place

The first of these that needs speech synthesises it, in some minutes; with the same programs it is the same, bit by bit.
""",
    ),
    (
        "Data and licence",
        """
Speech by eSpeak NG (8 English accents with 62 variants, from the PyPI package `espeakng-loader`) and Flite (5 voices,
from the Debian packages `flite` and `libflite1`), both free software, run as they are; what they say is drawn from the
grammar in `text.py`, with other pauses, tempos, pitches and noises (5 to 40 dB) for each utterance. `test.npz` holds
the frames of the first 100 utterances of the test part, `calibration.npz` of the first 16 of the training part,
`transcripts.txt` what the training part says. The real prompts are Asterisk's, spoken by Allison Smith, (c) 2003-2010,
financed by Digium, Inc., CC-BY-SA-3.0, from the Debian package `asterisk-core-sounds-en-wav`; none is committed here.
""",
    ),
)
