// A page that shows how far a long piece of work is: it asks for the next piece by itself.
document.getElementById("go-on").submit();
