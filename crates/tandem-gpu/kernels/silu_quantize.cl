// gate = silu(gate) * up, as in `elementwise.cl`, and the same in 8 bits, or in 16 with PLANES 2 (`quantize.cl`). A
// work-item has 4 numbers, of which there are `count` fours.
KERNEL silu_quantize(OUT(gate), IN(up), OUT(blocks), const uint count) {
    OUT_PTR(float4, gate);
    IN_PTR(float4, up);
    OUT_PTR(uchar, blocks);
    local uint scratch[GROUP];
    const uint i = get_global_id(0);
    float4 numbers = (float4)(0.0f);
    if (i < count) {
        numbers = gate[i] / (1.0f + exp(-gate[i])) * up[i];
        gate[i] = numbers;
    }
    const float4 stands_for = quantize_block(numbers, i < count, blocks, i, scratch);
#if PLANES == 2
    quantize_block(numbers - stands_for, i < count, blocks, count + i, scratch);
#endif
}
