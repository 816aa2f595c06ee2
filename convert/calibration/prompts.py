"""What a chat model is asked where it writes its own calibration text.

Owns the questions: prose, code and Chinese, each of its own kind, so that the answers are too.
"""

PROMPTS = (
    "Tell me about a place that you would like to visit, and why.",
    "写一篇关于春天的短文。",
    "Write a Python function that merges two sorted lists, and explain how it works.",
    "Explain how a refrigerator works to a ten-year-old.",
    "请解释什么是通货膨胀，以及它如何影响普通人的生活。",
    "Write a SQL query that finds the three customers who spent most last year.",
    "What were the main causes of the First World War?",
    "给我推荐几道适合新手的家常菜，并写出做法。",
    "Write a small HTTP server in Go with two routes and tests.",
    "A train leaves at 9:40 and travels 210 km at 84 km/h. When does it arrive? Show every step.",
    "如何用 Python 读取 CSV 文件并计算每一列的平均值？",
    "Refactor this: for i in range(len(names)): print(str(i) + ': ' + names[i])",
    "Write the opening page of a mystery novel that is set on a ferry.",
    "比较一下火车和飞机旅行的优缺点。",
    "Write a bash script that renames all .jpeg files below a folder to .jpg.",
    "Give me a plan for learning to play the guitar in three months.",
    "用简单的话介绍一下光合作用。",
    "Implement a least-recently-used cache in TypeScript.",
    "Draft a polite email that asks a landlord to repair the heating.",
    "小明有三十六个苹果，分给五个朋友，每人分到几个，还剩几个？请写出步骤。",
    "What does this C code do? while (*d++ = *s++);",
    "Summarise the plot of Romeo and Juliet in one paragraph, then criticise it in another.",
    "翻译成中文：The ferry leaves at dawn, and the river is quiet.",
    "Write a JSON document that describes a library with two books, and a schema for it.",
)
