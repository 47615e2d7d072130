// What a device's memory allows: reading alone, and reading with writing.

// Every work-item reads every `global size`-th 16 bytes of `count`; the sum is written only if it is what it never
// is, which the compiler cannot know.
KERNEL read_all(IN(from), OUT(to), const uint count) {
    IN_PTR(uint4, from);
    OUT_PTR(uint4, to);
    uint4 sum = (uint4)(0);
    for (uint i = get_global_id(0); i < count; i += get_global_size(0)) {
        sum ^= from[i];
    }
    if (all(sum == (uint4)(0x9e3779b9))) {
        to[get_global_id(0)] = sum;
    }
}

KERNEL copy(IN(from), OUT(to), const uint count) {
    IN_PTR(uint4, from);
    OUT_PTR(uint4, to);
    for (uint i = get_global_id(0); i < count; i += get_global_size(0)) {
        to[i] = from[i];
    }
}
