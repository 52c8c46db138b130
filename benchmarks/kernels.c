/* The matrix products of the compiled step, one at a time, as they are compiled for it: a compiler that spills a
   register tile shows here. The layers are those of p(x | h1), on T samples of IMAGES images. */
#include "step.c"

enum { WEIGHTS_PER_CALL = 1 << 26 };

/* A model with numbers in all of its buffers, `words`: with operands rounded to bfloat16. NULL where memory is short. */
Model *kernels_new(int T, int words) {
    Settings settings = {.layers = 1, .units = {50}, .widths = {200, 100}, .M = 1, .K = T, .scale = 1,
                         .words_forward = words, .words_backward = words};
    Model *s = model_new(&settings);
    for (float *at = s ? (float *)s->arena : NULL; at && at < (float *)s->next; at++) *at = 1e-3f;
    return s;
}

/* Some milliseconds of one product of layer `l` (0: 50 to 200 units, 1: 200 to 200, 2: 200 to 784): forward (0), back to
   its inputs (1), into its weights with Adam (2). Returns the floating-point operations. */
double kernels_run(Model *s, int l, int which) {
    Block *k = s->p;
    Dense *y = k->layer + l;
    Adam adam = {1e-9f, 1e-4f, 0.9f, 0.999f, 0};
    const float *in = l ? k->hidden[l - 1] : s->h[0];
    long ldi = l ? k->layer[l - 1].ld : PADDED(50), calls = 1 + WEIGHTS_PER_CALL / (s->rows * y->in * y->out);
    float *out = l < 2 ? k->hidden[l] : k->out, *d_out = l < 2 ? s->delta[1] : k->d_out;
    for (long i = 0; i < calls; i++) {
        if (which == 0) forward(s, y, in, ldi, out, s->rows, l < 2);
        if (which == 1) to_inputs(s, y, d_out, s->delta[0], s->rows, l ? in : NULL);
        if (which == 2) to_weights(s, y, in, ldi, d_out, NULL, s->rows, &adam);
    }
    return 2.0 * calls * s->rows * y->in * y->out;
}
