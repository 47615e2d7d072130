// Where keys and values are: in pages of KV_PAGE positions, which a sequence has in any order. Its table names them.
//
// A layer's part of a page has its keys, then its values: numbers, `[kv_head][position][head_dim]`, and with KV_BITS 8
// their scales, `[kv_head][position][head_dim / 32]`, halves. Both are rounded up to 64 bytes.
//
// Compiled for HEAD_DIM, KV_HEADS, KV_PAGE (a power of two) and KV_BITS (32 and 16: floats; 8: quants).

#define KV_ROUND(bytes) (((bytes) + 63) / 64 * 64)
#define KV_NUMBERS KV_ROUND(KV_HEADS * KV_PAGE * HEAD_DIM * (KV_BITS / 8))
#if KV_BITS == 8
#define KV_BLOCK 32
#define KV_PART (KV_NUMBERS + KV_ROUND(KV_HEADS * KV_PAGE * (HEAD_DIM / KV_BLOCK) * 2))
#else
#define KV_PART KV_NUMBERS
#endif

// Bytes before a position's page. Its values lie KV_PART bytes after its keys.
inline ulong kv_page(global const uint *table, uint position, uint page_bytes) {
    return (ulong)table[position / KV_PAGE] * page_bytes;
}

// A head's position as a row among those of a page.
inline uint kv_row(uint head, uint position) {
    return head * KV_PAGE + position % KV_PAGE;
}
