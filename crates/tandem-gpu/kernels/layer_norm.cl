// Layer normalisation of rows of WIDTH numbers, a work-group a row: (x - mean) / sqrt(variance + eps) * weight + bias.
//
// f32 throughout. The mean is taken twice, the second time of what the first leaves: deviations are then exact to
// their own rounding, however far the mean is from zero.

#define SHARE ((WIDTH + GROUP - 1) / GROUP)

KERNEL layer_norm(IN(x), IN(weight), IN(bias), const float eps, OUT(out)) {
    IN_PTR(float, x);
    IN_PTR(float, weight);
    IN_PTR(float, bias);
    OUT_PTR(float, out);
    local float scratch[GROUP];
    const ulong start = (ulong)get_group_id(0) * WIDTH;
    const uint first = get_local_id(0);
    float mine[SHARE];
    float sum = 0.0f;
    for (uint k = 0; k < SHARE; k++) {
        const uint i = first + k * GROUP;
        mine[k] = i < WIDTH ? x[start + i] : 0.0f;
        sum += mine[k];
    }
    const float mean = group_sum(sum, scratch) / WIDTH;
    sum = 0.0f;
    for (uint k = 0; k < SHARE; k++) {
        mine[k] = first + k * GROUP < WIDTH ? mine[k] - mean : 0.0f;
        sum += mine[k];
    }
    const float rest = group_sum(sum, scratch) / WIDTH;
    sum = 0.0f;
    for (uint k = 0; k < SHARE; k++) {
        mine[k] = first + k * GROUP < WIDTH ? mine[k] - rest : 0.0f;
        sum += mine[k] * mine[k];
    }
    const float scale = 1.0f / sqrt(group_sum(sum, scratch) / WIDTH + eps);
    for (uint k = 0; k < SHARE; k++) {
        const uint i = first + k * GROUP;
        if (i < WIDTH) {
            out[start + i] = mine[k] * scale * weight[i] + bias[i];
        }
    }
}
