// x += the weighted results of a token's two uses, in the order of experts. A work-item has one number of one token.
// Compiled for COLS.
KERNEL gather(IN(results), IN(use_weights), IN(places), const uint tokens, OUT(x)) {
    IN_PTR(float, results);
    IN_PTR(float, use_weights);
    IN_PTR(uint, places);
    OUT_PTR(float, x);
    const uint i = get_global_id(0), token = i / COLS, col = i % COLS;
    if (token < tokens) {
        // A choice that was no expert's has no place: then what is read is there, at least.
        const uint last = 2 * tokens - 1;
        const uint a = min(places[2 * token], last), b = min(places[2 * token + 1], last);
        const uint lower = min(a, b), upper = max(a, b);
        x[i] = x[i] + use_weights[lower] * results[(ulong)lower * COLS + col] +
               use_weights[upper] * results[(ulong)upper * COLS + col];
    }
}
