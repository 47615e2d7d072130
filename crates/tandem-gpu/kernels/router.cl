// SparseMixer (`tandem_model::router`, which is the definition): two experts for each token, with their weights.
//
// The function jumps at ties, so comparisons and the order of operations are those of the definition, NaN and all. A
// token is one work-item's: there are few experts, and choices are what must be the same. Compiled for EXPERTS.

// The index of the largest logit that is not `except`; the lowest one of equals.
inline uint best_of(global const float *logits, uint except) {
    uint best = except == 0 ? 1 : 0;
    for (uint j = 0; j < EXPERTS; j++) {
        if (j != except && logits[j] > logits[best]) {
            best = j;
        }
    }
    return best;
}

inline float weight_of(global const float *logits, uint chosen, uint except, float jitter) {
    const float largest = logits[chosen];
    float sum = 0.0f;
    for (uint j = 0; j < EXPERTS; j++) {
        const float s = logits[j];
        const bool masked = (largest - s) / fmax(fabs(s), largest) > 2.0f * jitter;
        if (j != except && !masked) {
            sum += exp(s - largest);
        }
    }
    return 1.0f / sum;
}

// `experts` and `weights` are [token][2].
KERNEL sparsemixer(IN(logits), const uint tokens, const float jitter, OUT(experts), OUT(weights)) {
    IN_PTR(float, logits);
    OUT_PTR(uint, experts);
    OUT_PTR(float, weights);
    const uint token = get_global_id(0);
    if (token >= tokens) {
        return;
    }
    global const float *mine = logits + (ulong)token * EXPERTS;
    const uint first = best_of(mine, EXPERTS), second = best_of(mine, first);
    experts[2 * token] = first;
    experts[2 * token + 1] = second;
    weights[2 * token] = weight_of(mine, first, EXPERTS, jitter);
    weights[2 * token + 1] = weight_of(mine, second, first, jitter);
}
