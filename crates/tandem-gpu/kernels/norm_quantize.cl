// Layer normalisation as in `layer_norm.cl`, and its result in 8 bits as well. A work-group has a row of WIDTH numbers, a
// multiple of 32; a work-item every GROUP-th four of them.

#define FOURS (WIDTH / 4)
#define SHARE ((FOURS + GROUP - 1) / GROUP)
#define SUM4(four) (((four).x + (four).y) + ((four).z + (four).w))

KERNEL norm_quantize(IN(x), IN(weight), IN(bias), const float eps, OUT(out), OUT(blocks)) {
    IN_PTR(float4, x);
    IN_PTR(float4, weight);
    IN_PTR(float4, bias);
    OUT_PTR(float4, out);
    OUT_PTR(uchar, blocks);
    local float scratch[GROUP];
    local uint of_blocks[GROUP];
    const uint start = get_group_id(0) * FOURS, first = get_local_id(0);
    float4 mine[SHARE];
    float sum = 0.0f;
    for (uint k = 0; k < SHARE; k++) {
        const uint i = first + k * GROUP;
        mine[k] = i < FOURS ? x[start + i] : (float4)(0.0f);
        sum += SUM4(mine[k]);
    }
    const float mean = group_sum(sum, scratch) / WIDTH;
    sum = 0.0f;
    for (uint k = 0; k < SHARE; k++) {
        mine[k] = first + k * GROUP < FOURS ? mine[k] - mean : (float4)(0.0f);
        sum += SUM4(mine[k]);
    }
    const float rest = group_sum(sum, scratch) / WIDTH;
    sum = 0.0f;
    for (uint k = 0; k < SHARE; k++) {
        mine[k] = first + k * GROUP < FOURS ? mine[k] - rest : (float4)(0.0f);
        sum += SUM4(mine[k] * mine[k]);
    }
    const float scale = 1.0f / sqrt(group_sum(sum, scratch) / WIDTH + eps);
    for (uint k = 0; k < SHARE; k++) {
        const uint i = first + k * GROUP;
        float4 result = (float4)(0.0f);
        if (i < FOURS) {
            result = mine[k] * scale * weight[i] + bias[i];
            out[start + i] = result;
        }
        quantize_block(result, i < FOURS, blocks, start + i, of_blocks);
    }
}
