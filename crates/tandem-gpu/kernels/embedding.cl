// Rows of the embedding table, decoded to f32: packed (tandem-memory's `packed.rs`) or plain.
//
// Compiled for COLS and KIND: 4 and 8 for packed quants of so many bits, 32, 16 and 17 for f32, f16 and bf16. A
// work-item has one number of one token.

KERNEL embedding(IN(table), const uint rows, IN(ids), const uint tokens, OUT(out)) {
    IN_PTR(uchar, table);
    IN_PTR(uint, ids);
    OUT_PTR(float, out);
    const uint i = get_global_id(0);
    const uint token = i / COLS, col = i % COLS;
    if (token >= tokens) {
        return;
    }
    const uint row = ids[token];
    if (row >= rows) {
        // An id that is none is refused before; this is so that nothing is read where nothing is.
        out[i] = NAN;
        return;
    }
#if KIND == 32
    out[i] = ((global const float *)table)[(ulong)row * COLS + col];
#elif KIND == 16
    out[i] = vload_half((ulong)row * COLS + col, (global const half *)table);
#elif KIND == 17
    out[i] = as_float((uint)((global const ushort *)table)[(ulong)row * COLS + col] << 16);
#else
    const uint blocks = COLS / 32, block = col / 32, tiles = (rows + LANES - 1) / LANES;
    const ulong at = (ulong)(row / LANES) * blocks + block;
    const uint lane = row % LANES;
    global const half *scales = (global const half *)(table + (ulong)tiles * blocks * (KIND * 64));
    const float scale = vload_half(at * LANES + lane, scales);
    global const uchar *quants = table + at * (KIND * 64);
#if KIND == 4
    const uint in_half = col % 16;
    const uchar both = quants[(in_half / 4 * LANES + lane) * 4 + in_half % 4];
    out[i] = scale * (float)((int)(col % 32 < 16 ? both & 15 : both >> 4) - 8);
#else
    const uint in_block = col % 32;
    out[i] = scale * (float)((global const char *)quants)[(in_block / 4 * LANES + lane) * 4 + in_block % 4];
#endif
#endif
}
