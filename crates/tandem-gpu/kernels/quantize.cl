// Activations in 8 bits: blocks of 32 along a row, each with a scale that makes its largest magnitude 127, as
// tandem-cpu's `QuantizedActivations`. A work-item has 4 numbers, so 8 neighbours make a block.

// What must not be divided by: activations of a block that are all smaller count as 0.
#define TINY 1e-36f

// The sum of 8 neighbours' numbers, by way of local memory.
inline int block_sum(int x, local uint *scratch) {
    const uint i = get_local_id(0);
    scratch[i] = as_uint(x);
    barrier(CLK_LOCAL_MEM_FENCE);
    int sum = 0;
    for (uint k = 0; k < 8; k++) {
        sum += as_int(scratch[(i & ~7u) + k]);
    }
    barrier(CLK_LOCAL_MEM_FENCE);
    return sum;
}

// Quantizes a work-item's share of a block; answers what its 8 bits stand for. Blocks beyond `count` are only there
// for the barriers.
inline float4 quantize_block(float4 x, uint index, uint count, global char4 *values, global float *scales,
                             global int *offsets, local uint *scratch) {
    const float largest = as_float(block_max(magnitude(x), scratch));
    const bool finite = isfinite(largest);
    const bool any = finite && largest >= TINY;
    const float scale = finite ? (any ? largest / 127.0f : 0.0f) : NAN;
    const float inverse = any ? 127.0f / largest : 0.0f;
    const int4 whole = any ? convert_int4_rte(x * inverse) : (int4)(0);
    const int sum = block_sum(whole.x + whole.y + whole.z + whole.w, scratch);
    if (index < count) {
        values[index] = convert_char4(whole);
        if (index % 8 == 0) {
            scales[index / 8] = scale;
            offsets[index / 8] = -8 * sum;
        }
    }
    return convert_float4(whole) * scale;
}

// `count` is the number of fours in `x`. With PLANES 2 each row of COLS numbers is followed by what it leaves out.
KERNEL quantize(IN(x), OUT(values), OUT(scales), OUT(offsets), const uint count) {
    IN_PTR(float4, x);
    OUT_PTR(char4, values);
    OUT_PTR(float, scales);
    OUT_PTR(int, offsets);
    local uint scratch[GROUP];
    const uint i = get_global_id(0);
    const uint row = i / (COLS / 4), col = i % (COLS / 4);
    const float4 numbers = i < count ? x[i] : (float4)(0.0f);
    const uint to = (row * PLANES) * (COLS / 4) + col;
    const uint end = count * PLANES;
    const float4 stands_for =
        quantize_block(numbers, i < count ? to : end, end, values, scales, offsets, scratch);
#if PLANES == 2
    quantize_block(numbers - stands_for, i < count ? to + COLS / 4 : end, end, values, scales, offsets, scratch);
#endif
}
