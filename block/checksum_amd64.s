#include "textflag.h"

// CRC32C by folding, as in Gopal, Ozturk and others, "Fast CRC Computation for
// Generic Polynomials Using PCLMULQDQ Instruction" (Intel, 2009), 512 bits at a
// time. A polynomial A before D bits of others has the same remainder as
//
//	A.low * (x^(D+32) mod P) + A.high * (x^(D-32) mod P)
//
// added to the last 128 of them, where low and high are the 64-bit halves of A
// in memory. Bits are in reversed order, so that each constant is reversed, and
// shifted by one since the product of two reversed polynomials is. P is
// 0x11edc6f41.

// D is 2048: over the four registers.
DATA fold2048<>+0(SB)/8, $0xdcb17aa4
DATA fold2048<>+8(SB)/8, $0xb9e02b86
GLOBL fold2048<>(SB), RODATA|NOPTR, $16

// D is 512: from one register to the next.
DATA fold512<>+0(SB)/8, $0x740eef02
DATA fold512<>+8(SB)/8, $0x9e4addf8
GLOBL fold512<>(SB), RODATA|NOPTR, $16

// FOLD makes what A stands for a part of B, by the constants in K.
#define FOLD(A, B, K, T) \
	VPCLMULQDQ $0x00, K, A, T \
	VPCLMULQDQ $0x11, K, A, A \
	VPTERNLOGD $0x96, T, A, B // B ^ A ^ T

// NEXT folds A over the three other registers onto the 64 bytes at M.
#define NEXT(A, M, T) \
	VPCLMULQDQ $0x00, Z8, A, T \
	VPCLMULQDQ $0x11, Z8, A, A \
	VPTERNLOGD $0x96, M, T, A

// func foldCRC(state uint32, p []byte) uint32
TEXT ·foldCRC(SB), NOSPLIT, $0-36
	MOVL state+0(FP), AX
	MOVQ p_base+8(FP), SI
	MOVQ p_len+16(FP), CX

	// The state belongs to the first 32 bits.
	VMOVD     AX, X4
	VMOVDQU64 0(SI), Z0
	VMOVDQU64 64(SI), Z1
	VMOVDQU64 128(SI), Z2
	VMOVDQU64 192(SI), Z3
	VPXORQ    Z4, Z0, Z0
	VBROADCASTI32X4 fold2048<>(SB), Z8
	VBROADCASTI32X4 fold512<>(SB), Z9

next:
	ADDQ $256, SI
	SUBQ $256, CX
	JZ   reduce
	NEXT(Z0, 0(SI), Z4)
	NEXT(Z1, 64(SI), Z5)
	NEXT(Z2, 128(SI), Z6)
	NEXT(Z3, 192(SI), Z7)
	JMP  next

reduce:
	FOLD(Z0, Z1, Z9, Z4)
	FOLD(Z1, Z2, Z9, Z4)
	FOLD(Z2, Z3, Z9, Z4)

	// The remainder of these 64 bytes is that of all before.
	XORQ          AX, AX
	VMOVQ         X3, BX
	CRC32Q        BX, AX
	VPEXTRQ       $1, X3, BX
	CRC32Q        BX, AX
	VEXTRACTI32X4 $1, Z3, X4
	VMOVQ         X4, BX
	CRC32Q        BX, AX
	VPEXTRQ       $1, X4, BX
	CRC32Q        BX, AX
	VEXTRACTI32X4 $2, Z3, X4
	VMOVQ         X4, BX
	CRC32Q        BX, AX
	VPEXTRQ       $1, X4, BX
	CRC32Q        BX, AX
	VEXTRACTI32X4 $3, Z3, X4
	VMOVQ         X4, BX
	CRC32Q        BX, AX
	VPEXTRQ       $1, X4, BX
	CRC32Q        BX, AX
	VZEROUPPER
	MOVL AX, ret+32(FP)
	RET
