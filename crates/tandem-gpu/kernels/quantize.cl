// Activations in 8 bits, or in 16: then a second plane of blocks follows, of what the first leaves out. Compiled for
// PLANES. A work-item has 4 numbers.

// `count` is the number of fours in `x`.
KERNEL quantize(IN(x), OUT(blocks), const uint count) {
    IN_PTR(float4, x);
    OUT_PTR(uchar, blocks);
    local uint scratch[GROUP];
    const uint i = get_global_id(0);
    const float4 numbers = i < count ? x[i] : (float4)(0.0f);
    const float4 stands_for = quantize_block(numbers, i < count, blocks, i, scratch);
#if PLANES == 2
    quantize_block(numbers - stands_for, i < count, blocks, count + i, scratch);
#endif
}
