"""The texts of the token goldens: hand-picked ones, then seeded mixtures."""
import random

FIXED = [
    "", " ", "  ", "\n", "\r\n", "\t", " \n \n", "a", "hello world", " hello", "hello ", "  two  spaces  ",
    "The quick brown fox jumps over the lazy dog.", "it's, I'll, we've, they'd, WE'RE", "1234567890", "3.14159e-10",
    "naïve café", "nai\u0308ve cafe\u0301", "\u212b \u1e9b\u0323 \u0344", "e\u0301\u0327\u0323", "각 \u1100\u1161\u11a8",
    "日本語のテキスト", "中文文本，标点。", "Привет, мир!", "שלום עולם", "مرحبا بالعالم", "नमस्ते दुनिया", "สวัสดีชาวโลก",
    "😀", "👩‍👩‍👧‍👦 family", "🇩🇪🇫🇷", "👍🏽", "a😀b", "\U00020000\U0002a6d6", "\u200b\u200d\ufeff", "\u2028\u2029\u0085",
    "\u00a0nbsp\u00a0", "\u3000ideographic", "▁▁ U+2581", "Ġ is not a space", "<0x0A>", "\x00\x01\x7f", "\u0000",
    "<|im_start|>user\nhi<|im_end|>\n", "<|endoftext|>", "<|im_start|><|im_start|>", "x<|im_end|>y", " <|im_end|> ",
    "<|im_start|", "|im_end|>", "<|IM_END|>", "<|im_\u0065nd|>",
    "def f(x):\n    return x + 1\n", "fn main() {\n\tprintln!(\"{}\", 1);\n}\n", "SELECT * FROM t WHERE a='b';",
    '{"k": [1, 2.5, null, true], "s": "\\u00e9\\n"}', "<html>\n  <body class=\"a\">&amp;</body>\n</html>",
    "https://example.com/a?b=c&d=%20#e", "if (a && b || !c) { d->e[0] = ~f; }", "#include <vector>\r\n\r\nint main(){}",
    "x = 1    # four spaces\n\n\n\ny = 2", "\t\ttabs\t\t", "line one\\nnot a newline", "$\\frac{1}{2}$", "ALLCAPS camelCase snake_case",
    "ﬁ ligature ½ ① Ⅷ ｆｕｌｌ", "İstanbul ıspanak ß ẞ", "Ω Ω K Å", "a\u0300" * 40, "\u0300", "\u0e01\u0e4d\u0e32",
]

ALPHABETS = [
    "abcdefghij klmnop\n", "0123456789 .,-+e", "éèêëàçñöüß ", "日本語中文韓국어ひらカナ 。", "😀😎👩‍🚀🇫🇷✨ ",
    " \t\n\r\u00a0", "{}[]()<>|;:'\"\\/&%$#@!", "Привет мир שלום مرحبا ", "a\u0301\u0327e\u0323o\u0308 \u1100\u1161\u11a8",
]


def texts():
    yield from FIXED
    rng = random.Random(20261125)
    specials = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
    while True:
        parts = []
        for _ in range(rng.randint(1, 6)):
            alphabet = rng.choice(ALPHABETS)
            parts.append("".join(rng.choice(alphabet) for _ in range(rng.randint(0, 24))))
            if rng.random() < 0.15:
                parts.append(rng.choice(specials))
        yield "".join(parts)
