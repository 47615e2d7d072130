// Operations on one number at a time.

// gate = silu(gate) * up, with silu(x) = x / (1 + exp(-x)). exp(-x) overflows to infinity only where the result is
// nothing but rounding: x / infinity is 0.
KERNEL silu_mul(OUT(gate), IN(up), const uint count) {
    OUT_PTR(float, gate);
    IN_PTR(float, up);
    const uint i = get_global_id(0);
    if (i < count) {
        gate[i] = gate[i] / (1.0f + exp(-gate[i])) * up[i];
    }
}
