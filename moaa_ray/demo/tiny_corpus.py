"""Some paragraphs of our own, in a few languages: all that the tiny demo models know."""

CORPUS = [
    "A good answer begins with the question. Say what is asked, say what is known, and then give the answer in plain "
    "words. When a number matters, show how it was found. When something is not certain, say so and say why.",
    "The river rises in the hills and runs to the sea. In spring the water is cold and fast, in summer it is slow and "
    "warm, and in winter the edges freeze. People have lived along the river for a long time.",
    "To make bread you need flour, water, salt and yeast. Mix the flour and the water, wait for an hour, and then add "
    "the salt and the yeast. Let the dough rest until it has doubled, and bake it in a hot oven for forty minutes.",
    "A list is a good way to keep things in order. First, write down what you want to do. Second, put the most "
    "important thing at the top. Third, do one thing at a time, and cross it out when it is done.",
    "The sum of two numbers does not depend on their order. If you add three and four you get seven, and if you add "
    "four and three you get seven as well. This is true for all numbers, large and small.",
    "Here is a short story. A small boat left the harbour in the early morning. The wind was light and the sea was "
    "calm. In the evening the boat came back with a basket of fish and a letter from the other side of the bay.",
    "The function takes a list and returns the largest value. If the list is empty, it raises an error. It reads each "
    "value once, so the time it needs grows with the length of the list.",
    "Both answers agree on the main point, but the first answer gives more detail and the second answer is easier to "
    "read. Taken together, they say that the plan can work if the first step is done with care.",
    "There are three reasons for this. The first reason is cost, because the old way needs more time. The second "
    "reason is quality, because the new way makes fewer errors. The third reason is that people like to use it.",
    "Light travels faster than sound. That is why you see the flash of a storm before you hear it. If you count the "
    "seconds between the flash and the sound and divide by three, you know how far away the storm is in kilometres.",
    "Eine gute Antwort ist kurz und klar. Sie sagt zuerst, was gefragt ist, und dann, was man weiss. Wenn etwas nicht "
    "sicher ist, sagt sie auch das. Am Ende steht, was man als Naechstes tun kann.",
    "Une bonne reponse est courte et claire. Elle dit d'abord ce qui est demande, puis ce que l'on sait. Quand une "
    "chose n'est pas certaine, elle le dit aussi. A la fin, elle donne un conseil simple.",
    "Una buena respuesta es breve y clara. Primero dice lo que se pregunta y luego lo que se sabe. Si algo no es "
    "seguro, tambien lo dice. Al final da un consejo sencillo.",
    "In the end, the best plan is the one that people can follow. Keep it short, keep it honest, and check it again "
    "after a week. If it does not work, change one thing and try again.",
]
