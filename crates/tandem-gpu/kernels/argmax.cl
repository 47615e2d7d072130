// The index of the largest number of each row; the lowest where several are. NaN counts as the largest, so that it is
// noticed. A work-group has a row.

// Whether number `a` at index `i` comes before `b` at `j`.
inline bool before(float a, uint i, float b, uint j) {
    if (isnan(a) || isnan(b)) {
        return isnan(a) && (!isnan(b) || i < j);
    }
    return a > b || (a == b && i < j);
}

KERNEL argmax(IN(x), const uint width, OUT(out)) {
    IN_PTR(float, x);
    OUT_PTR(uint, out);
    local float numbers[GROUP];
    local uint indices[GROUP];
    global const float *row = x + (ulong)get_group_id(0) * width;
    const uint lane = get_local_id(0);
    // Those beyond the end repeat the first, which changes nothing.
    uint best = lane < width ? lane : 0;
    for (uint i = lane; i < width; i += GROUP) {
        if (before(row[i], i, row[best], best)) {
            best = i;
        }
    }
    numbers[lane] = row[best];
    indices[lane] = best;
    for (uint rest = GROUP / 2; rest > 0; rest /= 2) {
        barrier(CLK_LOCAL_MEM_FENCE);
        if (lane < rest && before(numbers[lane + rest], indices[lane + rest], numbers[lane], indices[lane])) {
            numbers[lane] = numbers[lane + rest];
            indices[lane] = indices[lane + rest];
        }
    }
    if (lane == 0) {
        out[get_group_id(0)] = indices[0];
    }
}
